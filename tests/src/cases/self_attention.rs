//! Attention of a joined projection [B, T, (H + 2G) D], with and without rotation.

use patchgpt_autograd::{Result, Var};
use patchgpt_tensor::Tensor;

use super::{Case, Check, HEADS, inputs, mistake};
use crate::array::Placement;
use crate::reference::self_attention::Heads;

const BASE: f64 = 10_000.0;

fn run(heads: Heads, positions: usize) -> impl Fn(&[Var]) -> Result<Var> + Send + Sync + 'static {
    move |x| {
        let base = heads.rope.unwrap_or(BASE);
        let (cos, sin) = Tensor::rope_table(0, positions, heads.size, base, x[0].dtype(), x[0].device())?;
        let rope = heads.rope.map(|_| (&cos, &sin));
        x[0].self_attention(heads.queries, heads.groups, rope, heads.scale)
    }
}

pub(super) fn case([b, t]: [usize; 2], [h, g, d]: [usize; 3], rotate: bool) -> Case {
    let shape = [b, t, (h + 2 * g) * d];
    let scale = 1.0 / (d as f64).sqrt();
    let heads = Heads { queries: h, groups: g, size: d, rope: rotate.then_some(BASE), scale };
    let unrotated = Heads { rope: if rotate { None } else { Some(BASE) }, ..heads };
    Case {
        op: "self_attention",
        name: format!("{shape:?} with {h} heads on {g}, {}", if rotate { "rotated" } else { "not rotated" }),
        inputs: inputs(&[&shape]),
        run: Box::new(run(heads, t)),
        forward: Box::new(move |x| heads.forward(&x[0])),
        backward: Box::new(move |x, d_out| heads.backward(&x[0], d_out)),
        reduction: (t * h / g).max(d),
        flops: 2.0 * (b * h * t * (t + 1) * d) as f64,
        traffic: (b * t * (2 * h + 2 * g) * d) as f64,
        check: Check {
            mistakes: vec![
                mistake("a scale that was dropped", run(Heads { scale: 1.0, ..heads }, t)),
                mistake("the rotation the wrong way about", run(unrotated, t)),
            ],
            ..Check::default()
        },
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for rotate in [false, true] {
        for (n, h) in [
            ([1, 1], [1, 1, 2]),
            ([2, 5], [2, 2, 4]),
            ([1, 7], [4, 2, 6]),
            ([1, 66], [2, 1, 8]),
            ([2, 3], [6, 1, 2]),
            ([0, 3], [2, 1, 4]),
        ] {
            cases.push(case(n, h, rotate));
        }
        cases.extend(HEADS.iter().map(|&d| case([1, 4], [2, 1, d], rotate)));
        for placement in [Placement::Transposed, Placement::Sliced, Placement::Repeated] {
            cases.push(case([2, 5], [2, 1, 4], rotate).placed(&[placement]));
        }
    }
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![case([2, 20], [4, 2, 32], true)]
}
