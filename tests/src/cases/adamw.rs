//! AdamW over the first, the second and a late update, with and without parameters that decay.

use patchgpt_tensor::{AdamW, Tensor};

use super::{Direct, FLOATS};
use crate::array::{Array, Placement};
use crate::reference::adamw::{Settings, update};

const STEPS: [i32; 3] = [1, 2, 10];

fn settings(step: i32, decay_len: usize) -> Settings {
    let (learning_rate, clip, weight_decay) = (0.01, 0.5, 0.1);
    Settings { learning_rate, clip, step, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay, decay_len }
}

/// Parameters, gradients and moments before the first update.
fn start(n: usize) -> [Array; 4] {
    let mut state = [1, 2, 3, 4].map(|seed| Array::random(&[n], 1.0, seed));
    state[3].data.iter_mut().for_each(|v| *v = v.abs());
    state
}

fn case(n: usize, decay_len: usize) -> Direct {
    Direct {
        op: "adamw",
        name: format!("{n} parameters of which {decay_len} decay"),
        dtypes: &FLOATS,
        run: Box::new(move |dtype, device| {
            let place = |x: &Array| Placement::Contiguous.place(x, dtype, device);
            let state = start(n).iter().map(place).collect::<patchgpt_tensor::Result<Vec<Tensor>>>()?;
            for step in STEPS {
                let s = settings(step, decay_len);
                AdamW {
                    parameters: &state[0],
                    gradients: &state[1],
                    first_moment: &state[2],
                    second_moment: &state[3],
                    learning_rate: &Tensor::scalar(s.learning_rate, dtype, device)?,
                    clip: &Tensor::scalar(s.clip, dtype, device)?,
                    step: &Tensor::from_slice(&[step], &[], device)?,
                    beta1: s.beta1,
                    beta2: s.beta2,
                    eps: s.eps,
                    weight_decay: s.weight_decay,
                    decay_len,
                }
                .run()?;
            }
            Ok(state)
        }),
        expected: Box::new(move |dtype| {
            let mut state = start(n).map(|x| x.rounded(dtype));
            for step in STEPS {
                let [p, g, m, v] = &mut state;
                update(settings(step, decay_len), &mut p.data, &g.data, &mut m.data, &mut v.data);
            }
            state.into()
        }),
        reduction: Some(1),
        flops: 15.0 * (STEPS.len() * n) as f64,
        traffic: 7.0 * (STEPS.len() * n) as f64,
    }
}

pub(super) fn direct() -> Vec<Direct> {
    [(1, 0), (1, 1), (0, 0), (17, 17), (1000, 300), (1000, 0), (100_003, 70_001)]
        .map(|(n, decay)| case(n, decay))
        .into()
}
