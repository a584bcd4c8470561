//! AdamW over the first, the second and a late update, with and without parameters that decay; the copy that is rounded to bf16.

use patchgpt_tensor::{AdamW, DType, Rounded, Rounding, Tensor};

use super::{Direct, FLOATS};
use crate::array::{Array, Placement, round_to};
use crate::reference::adamw::{Settings, round_stochastically, update};

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
                    rounded: None,
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

/// The rounded copy alone, exactly: an update with a learning rate of 0 leaves the parameters as they are.
fn rounding_case(n: usize, step: i32, rounding: Rounding) -> Direct {
    let values = move || {
        let mut x = Array::random(&[n], 3.0, n as u64);
        // No infinity: an update makes NaN of it.
        let special = [0.0, -0.0, f64::NAN, 1.0, -1.5, 1e-30, 2f64.powi(-126), 3e38];
        x.data.iter_mut().zip(special).for_each(|(x, special)| *x = special);
        x.rounded(DType::F32)
    };
    Direct {
        op: "adamw",
        name: format!("{n} parameters rounded in update {step}, {rounding:?}"),
        dtypes: &[DType::F32],
        run: Box::new(move |dtype, device| {
            let zeros = || Tensor::zeros(&[n], dtype, device);
            let (parameters, gradients) = (Placement::Contiguous.place(&values(), dtype, device)?, zeros()?);
            let (first_moment, second_moment) = (zeros()?, zeros()?);
            let rounded = Tensor::zeros(&[n], DType::BF16, device)?;
            AdamW {
                parameters: &parameters,
                gradients: &gradients,
                first_moment: &first_moment,
                second_moment: &second_moment,
                learning_rate: &Tensor::scalar(0.0, dtype, device)?,
                clip: &Tensor::scalar(1.0, dtype, device)?,
                step: &Tensor::from_slice(&[step], &[], device)?,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.0,
                decay_len: 0,
                rounded: Some(Rounded { tensor: &rounded, rounding }),
            }
            .run()?;
            let again = Tensor::zeros(&[n], DType::BF16, device)?;
            Rounded { tensor: &again, rounding }.again(&parameters, step)?;
            Ok(vec![rounded.cast(dtype)?, again.cast(dtype)?])
        }),
        expected: Box::new(move |_| {
            let x = values();
            let rounded = Array::from_fn(&[n], |i| match rounding {
                Rounding::Stochastic { seed } if x.data[i].is_finite() => {
                    round_stochastically(x.data[i], i as u64, step as u32, seed)
                }
                _ => round_to(x.data[i], DType::BF16),
            });
            vec![rounded.clone(), rounded]
        }),
        reduction: None,
        flops: 15.0 * n as f64,
        traffic: 7.5 * n as f64,
    }
}

pub(super) fn direct() -> Vec<Direct> {
    let updates = [(1, 0), (1, 1), (0, 0), (17, 17), (1000, 300), (1000, 0), (100_003, 70_001)];
    let stochastic = |seed| Rounding::Stochastic { seed };
    let roundings = [
        rounding_case(1001, 1, Rounding::Nearest),
        rounding_case(1001, 1, stochastic(7)),
        rounding_case(1001, 2, stochastic(7)),
        rounding_case(17, i32::MAX, stochastic(u64::MAX - 5)),
        rounding_case(0, 1, stochastic(1)),
    ];
    updates.map(|(n, decay)| case(n, decay)).into_iter().chain(roundings).collect()
}
