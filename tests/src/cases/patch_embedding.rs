//! Embedding of patches of 1 to 16 tokens; few ids, so that rows repeat within a patch and across the batch.

use patchgpt_autograd::Var;
use patchgpt_tensor::{ScatterIndex, Tensor};

use super::{Case, Check, PATCHES, ids, inputs, mistake};
use crate::array::Placement;
use crate::reference::patch_embedding as reference;

pub(super) fn case(lead: &[usize], v: usize, c: usize, patch: usize) -> Case {
    let rows: usize = lead.iter().product();
    let ids = ids(rows * patch, v, (rows + 7 * patch) as u64);
    let (for_forward, for_backward, lead) = (ids.clone(), ids.clone(), lead.to_vec());
    let mut shape = lead.clone();
    shape.push(patch);
    let name = format!("ids {shape:?} of a table [{v}, {c}]");
    let embed = move |x: &[Var], ids: &[i32]| {
        let index = ScatterIndex::new(ids, v, x[0].device())?;
        x[0].patch_embedding(&Tensor::from_slice(ids, &shape, x[0].device())?, &index)
    };
    let (shifted, summed, for_shifted, for_summed) = (embed.clone(), embed.clone(), ids.clone(), ids.clone());
    let mistakes = vec![
        mistake("ids off by one", move |x| {
            let next: Vec<i32> = for_shifted.iter().map(|id| (id + 1) % v as i32).collect();
            shifted(x, &next)
        }),
        mistake("a sum in the place of the mean", move |x| summed(x, &for_summed)?.affine(patch as f64, 0.0)),
    ];
    Case {
        op: "patch_embedding",
        name,
        inputs: inputs(&[&[v, c]]),
        run: Box::new(move |x| embed(x, &ids)),
        forward: Box::new(move |x| reference::forward(&x[0], &for_forward, &lead, patch)),
        backward: Box::new(move |x, d| reference::backward(&x[0], &for_backward, patch, d)),
        reduction: rows * patch,
        flops: (rows * patch * c) as f64,
        traffic: (rows * patch * c + rows * c) as f64,
        check: Check { mistakes, ..Check::default() },
    }
}

pub(super) fn large() -> Vec<Case> {
    vec![case(&[40, 10], 100, 100, 4)]
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = PATCHES.iter().map(|&k| case(&[2, 3], 5, 7, k)).collect();
    cases.extend([
        case(&[1], 1, 1, 1),
        case(&[4], 40, 33, 4),
        case(&[0], 3, 4, 2),
        case(&[130], 3, 16, 4),
        case(&[17, 9], 300, 8, 2),
    ]);
    cases.extend(Placement::ALL.iter().map(|&p| case(&[2, 5], 6, 8, 3).placed(&[p])));
    cases
}
