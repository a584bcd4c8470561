//! AdamW over flat storage in one sweep, and the global norm of a flat gradient.
//!
//! AdamW reads parameters, gradients and both moments and writes all but the gradients: 28 bytes a parameter in f32, 30 with its rounded copy, about 15
//! FLOP. The norm reads 4 bytes a parameter; squares are summed in f64 in blocks of fixed size, added in order.

use super::access::Access;
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::reduce::each_mut;
use super::vectorized::vectorized;
use super::with_float;
use super::{copy, random};
use crate::backend::{AdamW, Rounding};
use crate::{Result, Tensor};
use half::bf16;

/// Elements of a block of the norm's sum.
const BLOCK: usize = 16384;

/// The update's constants in the dtype of the parameters.
#[derive(Clone, Copy)]
struct Constants<F> {
    clip: F,
    beta1: F,
    beta2: F,
    eps: F,
    /// lr / (1 - beta1^t)
    rate: F,
    /// 1 / sqrt(1 - beta2^t)
    correction: F,
    /// lr * weight_decay
    decay: F,
}

vectorized! {
    fn update<'a, F>(isa: I, p: &'a mut [F], g: &'a [F], m: &'a mut [F], v: &'a mut [F], c: Constants<F>) -> () {
        let (rest1, rest2) = (F::ONE - c.beta1, F::ONE - c.beta2);
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * c.clip;
            *m = F::fma(isa, c.beta1, *m, rest1 * g);
            *v = F::fma(isa, c.beta2, *v, rest2 * g * g);
            let kept = *p - c.decay * *p;
            *p = kept - c.rate * *m / F::fma(isa, v.sqrt(), c.correction, c.eps);
        }
    }
}

/// One update; see the contract.
pub(super) fn adamw(pool: &Pool, args: AdamW) -> Result<()> {
    with_float!("adamw", args.parameters.dtype(), F => {
        let scalars = [args.learning_rate, args.clip, args.step];
        let [g, lr, clip, step] = [args.gradients, scalars[0], scalars[1], scalars[2]];
        let outputs = [args.parameters, args.first_moment, args.second_moment];
        let outputs: Vec<&Tensor> = outputs.into_iter().chain(args.rounded.map(|r| r.tensor)).collect();
        let access = Access::new("adamw", &[g, lr, clip, step], &outputs)?;
        let gradients = access.view::<F>(g)?.slice();
        let [p, m, v] = [access.view_mut::<F>(outputs[0])?, access.view_mut::<F>(outputs[1])?, access.view_mut::<F>(outputs[2])?];
        let rounded = args.rounded.map(|r| Ok::<_, crate::Error>((access.view_mut::<bf16>(r.tensor)?, r.rounding))).transpose()?;
        let lr = access.view::<F>(lr)?.slice()[0].to_f64();
        let step = access.view::<i32>(step)?.slice()[0];
        let constants = Constants {
            clip: access.view::<F>(clip)?.slice()[0],
            beta1: F::from_f64(args.beta1),
            beta2: F::from_f64(args.beta2),
            eps: F::from_f64(args.eps),
            rate: F::from_f64(lr / (1.0 - args.beta1.powi(step))),
            correction: F::from_f64(1.0 / (1.0 - args.beta2.powi(step)).sqrt()),
            decay: F::from_f64(lr * args.weight_decay),
        };
        let n = gradients.len();
        let (count, per_block) = blocks(n, 4);
        pool.run(count, |b| {
            let (start, end) = (b * per_block, ((b + 1) * per_block).min(n));
            let border = args.decay_len.clamp(start, end);
            for (range, decay) in [(start..border, constants.decay), (border..end, F::ZERO)] {
                // SAFETY: ranges are disjoint.
                let (p, m, v) = unsafe { (p.slice(range.clone()), m.slice(range.clone()), v.slice(range.clone())) };
                update::<F>(p, &gradients[range.clone()], m, v, Constants { decay, ..constants });
                if let Some((view, rounding)) = &rounded {
                    // SAFETY: as above.
                    let (rounded, p) = (unsafe { view.slice(range.clone()) }, bytemuck::cast_slice(p));
                    match *rounding {
                        Rounding::Nearest => copy::row::<f32, bf16>(p, rounded),
                        Rounding::Stochastic { seed } => random::round_stochastically(seed, step, range.start, p, rounded),
                    }
                }
            }
        });
        Ok(())
    })
}

vectorized! {
    fn squares<'a, F>(isa: I, x: &'a [F]) -> f64 {
        let mut partial = [0.0f64; 16];
        let chunks = x.chunks_exact(16);
        for (i, &x) in chunks.remainder().iter().enumerate() {
            partial[i] = x.to_f64() * x.to_f64();
        }
        for chunk in chunks {
            for (p, x) in partial.iter_mut().zip(chunk) {
                *p = I::fma_f64(x.to_f64(), x.to_f64(), *p);
            }
        }
        partial.iter().sum()
    }
}

/// `norm` and `clip = min(1, max_norm / (norm + 1e-6))`.
pub(super) fn global_norm(pool: &Pool, norm: &Tensor, clip: &Tensor, x: &Tensor, max_norm: f64) -> Result<()> {
    with_float!("global_norm", x.dtype(), F => {
        let access = Access::new("global_norm", &[x], &[norm, clip])?;
        let x = access.view::<F>(x)?.slice();
        let mut partial = vec![0.0f64; x.len().div_ceil(BLOCK)];
        each_mut(pool, &mut partial, 1, |b, p| p[0] = squares::<F>(&x[b * BLOCK..((b + 1) * BLOCK).min(x.len())]));
        let value = partial.iter().sum::<f64>().sqrt();
        // A NaN norm gives a NaN factor: it must not pass for a harmless gradient.
        let factor = if value.is_nan() { value } else { (max_norm / (value + 1e-6)).min(1.0) };
        let (norm, clip) = (access.view_mut::<F>(norm)?, access.view_mut::<F>(clip)?);
        // SAFETY: one element each, locked for writing, no other reference.
        unsafe {
            norm.slice(0..1)[0] = F::from_f64(value);
            clip.slice(0..1)[0] = F::from_f64(factor);
        }
        Ok(())
    })
}
