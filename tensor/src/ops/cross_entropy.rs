//! Cross-entropy of one softmax against K targets.

use super::{as_rows, expect_shape, same_device, same_kind, through_rows, width};
use crate::index::check_indices;
use crate::{Destination, Error, Result, Tensor};

/// What [`Tensor::cross_entropy`] returns.
pub struct CrossEntropy {
    /// Loss of every row, flat: `sum over valid targets of w_k * (lse - logit of the target)`.
    pub losses: Tensor,
    /// Log-sum-exp of every row, flat.
    pub lse: Tensor,
}

/// Checks `targets` [N, K] in 0..v or ignored, and `weights` [K]; gives both contiguous.
pub(super) fn check_targets(
    op: &'static str,
    x: &Tensor,
    rows: usize,
    v: usize,
    targets: &Tensor,
    weights: &Tensor,
) -> Result<(Tensor, Tensor)> {
    same_device(op, &[x, targets, weights])?;
    let k = width(op, targets)?;
    let targets = as_rows(op, &targets.contiguous()?)?;
    if targets.dim(0) != rows {
        return Err(Error::shape(op, format!("targets [{rows}, K] expected, got {:?}", targets.shape())));
    }
    expect_shape(op, "the target weights", weights, &[k])?;
    if weights.dtype() != x.dtype().accumulator() {
        return Err(Error::dtype(op, x.dtype().accumulator(), weights.dtype()));
    }
    check_indices(op, &targets, v, true)?;
    Ok((targets, weights.contiguous()?))
}

impl Tensor {
    /// Loss of logits, this tensor [.., V], against `targets` i32 [.., K] with `weights` [K] (accumulator dtype); a target of
    /// [`IGNORE_INDEX`](crate::IGNORE_INDEX) is not scored. One log-sum-exp and K gathers a row.
    pub fn cross_entropy(&self, targets: &Tensor, weights: &Tensor) -> Result<CrossEntropy> {
        let op = "cross_entropy";
        let dtype = same_kind(op, &[self])?;
        let logits = as_rows(op, self)?;
        let (targets, weights) = check_targets(op, self, logits.dim(0), logits.dim(1), targets, weights)?;
        let losses = Tensor::empty(&[logits.dim(0)], dtype.accumulator(), self.device())?;
        let lse = Tensor::empty(&[logits.dim(0)], dtype.accumulator(), self.device())?;
        self.device().backend().cross_entropy(&losses, &lse, &logits, &targets, &weights)?;
        losses.mark_written();
        lse.mark_written();
        Ok(CrossEntropy { losses, lse })
    }

    /// Gradient of [`Tensor::cross_entropy`] for the logits, this tensor, which `d_logits` may be itself; `d_losses` [N] is the gradient of the rows' losses.
    pub fn cross_entropy_backward(
        &self,
        lse: &Tensor,
        targets: &Tensor,
        weights: &Tensor,
        d_losses: &Tensor,
        d_logits: Destination,
    ) -> Result<()> {
        let op = "cross_entropy_backward";
        let dtype = same_kind(op, &[self, d_logits.tensor])?;
        expect_shape(op, "d_logits", d_logits.tensor, self.shape())?;
        let logits = as_rows(op, self)?;
        let (targets, weights) = check_targets(op, self, logits.dim(0), logits.dim(1), targets, weights)?;
        for (what, t) in [("lse", lse), ("d_losses", d_losses)] {
            expect_shape(op, what, t, &[logits.dim(0)])?;
            if t.dtype() != dtype.accumulator() {
                return Err(Error::dtype(op, dtype.accumulator(), t.dtype()));
            }
        }
        same_device(op, &[self, lse, d_losses])?;
        let lse = lse.contiguous()?;
        through_rows(op, d_logits, |d_logits| {
            self.device().backend().cross_entropy_backward(d_logits, d_losses, &logits, &lse, &targets, &weights)
        })
    }
}
