//! The head and its loss together: logits exist for one chunk of rows at a time, and gradients are made in the same pass.

use super::cross_entropy::check_targets;
use super::{expect_shape, gradient_kind, same_kind, through_rows};
use crate::backend::{Backend, LinearCrossEntropy};
use crate::{DType, Destination, Error, LogitChunk, Result, Tensor};

/// The logits of a chunk on the CPU, 512 rows of a vocabulary of 32000 in f32. Each chunk packs the weight twice and reads and writes its whole gradient: with
/// half the rows, forward and backward of the head take 5% longer, with twice as many no less.
pub(crate) const HOST_LOGITS: LogitChunk = LogitChunk { bytes: 64 << 20, rows: 64, alignment: 1 };

impl Tensor {
    /// Rows' losses of `cross_entropy(x @ weight^T)`, flat; x is this tensor [.., C], weight [V, C], targets i32 [.., K], target weights [K].
    ///
    /// Where `d_x` or `d_weight` is given, the gradient of `scale * sum(losses)` goes there; `scale` is 0-d, 1 / M for the mean over M targets.
    pub fn linear_cross_entropy(
        &self,
        weight: &Tensor,
        targets: &Tensor,
        target_weights: &Tensor,
        scale: &Tensor,
        d_x: Option<Destination>,
        d_weight: Option<Destination>,
    ) -> Result<Tensor> {
        let op = "linear_cross_entropy";
        let dtype = same_kind(op, &[self, weight])?;
        let (x, weight) = (super::as_rows(op, self)?, weight.contiguous_rows()?);
        let &[v, c] = weight.shape() else {
            return Err(Error::shape(op, format!("a weight [V, C] expected, got {:?}", weight.shape())));
        };
        if x.dim(1) != c {
            return Err(Error::shape(
                op,
                format!("x [.., {c}] expected for the weight {:?}, got {:?}", weight.shape(), self.shape()),
            ));
        }
        let (targets, target_weights) = check_targets(op, self, x.dim(0), v, targets, target_weights)?;
        expect_shape(op, "the scale", scale, &[])?;
        if scale.dtype() != dtype.accumulator() {
            return Err(Error::dtype(op, dtype.accumulator(), scale.dtype()));
        }
        for (d, shape) in [(d_x, self.shape()), (d_weight, weight.shape())] {
            if let Some(d) = d {
                gradient_kind(op, self, d.tensor)?;
                expect_shape(op, "the gradient", d.tensor, shape)?;
            }
        }
        let losses = Tensor::empty(&[x.dim(0)], dtype.accumulator(), self.device())?;
        let run = |d_x: Option<Destination>, d_weight: Option<Destination>| {
            self.device().backend().linear_cross_entropy(LinearCrossEntropy {
                x: &x,
                weight: &weight,
                targets: &targets,
                target_weights: &target_weights,
                scale,
                losses: &losses,
                d_x,
                d_weight,
            })
        };
        super::through_optional(op, d_x, |d_x| match d_weight {
            Some(d) => through_rows(op, d, |d| run(d_x, Some(d))),
            None => run(d_x, None),
        })?;
        losses.mark_written();
        Ok(losses)
    }
}

/// The default body of [`Backend::linear_cross_entropy`]: for each chunk of rows, `logits = x W^T`, their loss, the gradient in
/// place of the logits, `d_x = d_logits W`, `d_W += d_logits^T x`.
pub(crate) fn linear_cross_entropy_by_chunks<B: Backend + ?Sized>(
    backend: &B,
    chunk: LogitChunk,
    args: LinearCrossEntropy,
) -> Result<()> {
    let LinearCrossEntropy { x, weight, targets, target_weights, scale, losses, d_x, d_weight } = args;
    let (n, v) = (x.dim(0), weight.dim(0));
    if n == 0 {
        return match d_weight {
            Some(d) if !d.accumulate => backend.fill(d.tensor, 0.0),
            _ => Ok(()),
        };
    }
    let size = x.dtype().size();
    let (chunk, columns) = (chunk.rows_of(n, v, size), chunk.columns_of(v, size));
    let logits = Tensor::empty(&[chunk, columns], x.dtype(), x.device())?.narrow(1, 0, v)?;
    let lse = Tensor::empty(&[chunk], losses.dtype(), x.device())?;
    for start in (0..n).step_by(chunk) {
        let rows = chunk.min(n - start);
        let part = |t: &Tensor| t.narrow(0, start, rows);
        let (logits, lse, x, targets) = (logits.narrow(0, 0, rows)?, lse.narrow(0, 0, rows)?, part(x)?, part(targets)?);
        backend.matmul(Destination::write(&logits), &x, &weight.t()?, 1.0)?;
        backend.cross_entropy(&part(losses)?, &lse, &logits, &targets, target_weights)?;
        if d_x.is_none() && d_weight.is_none() {
            continue;
        }
        let d_losses = scale.broadcast_to(&[rows])?;
        backend.cross_entropy_backward(
            Destination::write(&logits),
            &d_losses,
            &logits,
            &lse,
            &targets,
            target_weights,
        )?;
        if let Some(d) = d_x {
            let tensor = part(d.tensor)?;
            backend.matmul(Destination { tensor: &tensor, accumulate: d.accumulate }, &logits, weight, 1.0)?;
        }
        if let Some(d) = d_weight {
            backend.matmul(
                Destination { tensor: d.tensor, accumulate: d.accumulate || start > 0 },
                &logits.t()?,
                &x,
                1.0,
            )?;
        }
    }
    Ok(())
}

/// The same where products of bf16 are computed in f32: their factors are widened once, not for every chunk, and logits stay in f32.
pub(crate) fn linear_cross_entropy_on_host<B: Backend + ?Sized>(backend: &B, args: LinearCrossEntropy) -> Result<()> {
    if args.x.dtype() != DType::BF16 {
        return linear_cross_entropy_by_chunks(backend, HOST_LOGITS, args);
    }
    let (x, weight) = (args.x.cast(DType::F32)?, args.weight.cast(DType::F32)?);
    linear_cross_entropy_by_chunks(backend, HOST_LOGITS, LinearCrossEntropy { x: &x, weight: &weight, ..args })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Distribution};

    /// Losses, d_x and d_weight of 10 rows, whose gradients held 1 before, in chunks of at least `rows` rows; written or added.
    fn run(rows: usize, accumulate: bool, wanted: [bool; 2]) -> Vec<Vec<f64>> {
        let device = Device::cpu_with_threads(1).expect("a device");
        let random = |shape: &[usize], seed| {
            Tensor::random(shape, Distribution::Normal { mean: 0.0, std: 1.0 }, seed, 0, DType::F64, &device)
                .expect("a tensor")
        };
        let ones = |shape: &[usize]| Tensor::full(shape, 1.0, DType::F64, &device).expect("a tensor");
        let (x, weight, d_x, d_weight) = (random(&[10, 4], 1), random(&[7, 4], 2), ones(&[10, 4]), ones(&[7, 4]));
        let ids: Vec<i32> =
            (0..20).map(|i| if i % 6 == 5 { crate::backend::IGNORE_INDEX } else { i * 5 % 7 }).collect();
        let targets = Tensor::from_slice(&ids, &[10, 2], &device).expect("a tensor");
        let (target_weights, scale, losses) = (random(&[2], 3), Tensor::scalar(0.3, DType::F64, &device), ones(&[10]));
        let [to_x, to_weight] = [&d_x, &d_weight].map(|tensor| Destination { tensor, accumulate });
        let args = LinearCrossEntropy {
            x: &x,
            weight: &weight,
            targets: &targets,
            target_weights: &target_weights,
            scale: &scale.expect("a tensor"),
            losses: &losses,
            d_x: wanted[0].then_some(to_x),
            d_weight: wanted[1].then_some(to_weight),
        };
        linear_cross_entropy_by_chunks(
            device.backend(),
            LogitChunk { bytes: 0, rows, alignment: if rows == 3 { 64 } else { 1 } },
            args,
        )
        .expect("losses");
        [losses, d_x, d_weight].map(|tensor| tensor.to_vec::<f64>().expect("f64")).into()
    }

    #[test]
    fn chunks_together_are_the_whole() {
        for accumulate in [false, true] {
            for wanted in [[true, true], [true, false], [false, true], [false, false]] {
                let whole = run(10, accumulate, wanted);
                for rows in [1, 3, 9] {
                    for (part, whole) in run(rows, accumulate, wanted).iter().flatten().zip(whole.iter().flatten()) {
                        assert!((part - whole).abs() < 1e-12, "{part} by chunks of {rows}, {whole} at once");
                    }
                }
            }
        }
    }

    #[test]
    fn a_chunk_is_as_many_rows_as_its_bytes_hold() {
        let chunk = LogitChunk { bytes: 1000, rows: 3, alignment: 1 };
        assert_eq!((chunk.rows_of(100, 25, 4), chunk.rows_of(7, 25, 4), chunk.rows_of(100, 1000, 4)), (9, 7, 3));
        assert_eq!((chunk.rows_of(100, 0, 4), chunk.columns_of(25, 4)), (100, 25));
        let aligned = LogitChunk { alignment: 64, ..chunk };
        assert_eq!([0, 1, 16, 17, 25].map(|vocabulary| aligned.columns_of(vocabulary, 4)), [0, 16, 16, 32, 32]);
        assert_eq!((aligned.columns_of(25, 2), aligned.rows_of(100, 25, 4)), (32, 6));
    }
}
