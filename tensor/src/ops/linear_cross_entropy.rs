//! The head and its loss together: logits exist for one chunk of rows at a time, and gradients are made in the same pass.

use super::cross_entropy::check_targets;
use super::{expect_shape, gradient_kind, same_kind, through_rows};
use crate::backend::{Backend, LinearCrossEntropy};
use crate::{Destination, Error, Result, Tensor};

/// Bytes of logits that a chunk holds at most (but at least [`CHUNK_ROWS`] rows): small beside the weights of a model with a large vocabulary, and enough rows for
/// the products to run at speed.
const CHUNK_BYTES: usize = 32 << 20;
const CHUNK_ROWS: usize = 64;

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
pub(crate) fn linear_cross_entropy_by_chunks<B: Backend + ?Sized>(backend: &B, args: LinearCrossEntropy) -> Result<()> {
    let LinearCrossEntropy { x, weight, targets, target_weights, scale, losses, d_x, d_weight } = args;
    let (n, v) = (x.dim(0), weight.dim(0));
    if n == 0 {
        return match d_weight {
            Some(d) if !d.accumulate => backend.fill(d.tensor, 0.0),
            _ => Ok(()),
        };
    }
    let chunk = (CHUNK_BYTES / (v.max(1) * x.dtype().size())).clamp(CHUNK_ROWS, n.max(CHUNK_ROWS)).min(n);
    let logits = Tensor::empty(&[chunk, v], x.dtype(), x.device())?;
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
