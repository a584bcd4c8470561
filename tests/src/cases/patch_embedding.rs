//! Embedding of patches of 1 to 16 tokens; few ids, so that rows repeat within a patch and across the batch.

use patchgpt_tensor::{ScatterIndex, Tensor};

use super::{Case, ids, inputs};
use crate::array::Placement;
use crate::reference::patch_embedding as reference;

pub(super) fn case(lead: &[usize], v: usize, c: usize, patch: usize) -> Case {
    let rows: usize = lead.iter().product();
    let ids = ids(rows * patch, v, (rows + 7 * patch) as u64);
    let (for_run, for_forward, lead) = (ids.clone(), ids.clone(), lead.to_vec());
    let mut shape = lead.clone();
    shape.push(patch);
    Case {
        op: "patch_embedding",
        name: format!("ids {shape:?} of a table [{v}, {c}]"),
        inputs: inputs(&[&[v, c]]),
        run: Box::new(move |x| {
            let device = x[0].device();
            let index = ScatterIndex::new(&for_run, v, device)?;
            x[0].patch_embedding(&Tensor::from_slice(&for_run, &shape, device)?, &index)
        }),
        forward: Box::new(move |x| reference::forward(&x[0], &for_forward, &lead, patch)),
        backward: Box::new(move |x, d| reference::backward(&x[0], &ids, patch, d)),
        reduction: rows * patch,
        flops: (rows * patch * c) as f64,
        traffic: (rows * patch * c + rows * c) as f64,
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = [1, 2, 3, 4, 8, 16].iter().map(|&k| case(&[2, 3], 5, 7, k)).collect();
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
