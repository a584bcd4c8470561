//! The head and its loss together: for each chunk of rows, logits by a product, their losses and, in their place, their gradient by one kernel, and two
//! products for the gradients of x and of the weight. Logits exist for one chunk at a time.
//!
//! FLOPs: 2 N C V for the losses alone, 6 N C V with both gradients. Bytes: each logit written by the product, then read and written by the
//! kernel (read twice where a row does not fit in shared memory), then read by two products; the weight read twice a chunk, its gradient
//! read and written once a chunk.

use patchgpt_tensor::{Backend, Destination, LinearCrossEntropy, LogitChunk, Result, Tensor};

use super::cross_entropy::{self, LossInPlace};
use crate::device::Cuda;

/// Enough to fill a card with products.
const CARD: LogitChunk = LogitChunk { bytes: 256 << 20, rows: 1024 };
/// Small, so that small tests have several.
const EMULATED: LogitChunk = LogitChunk { bytes: 4 << 10, rows: 8 };

/// The logits that exist at a time.
pub(crate) fn logits(emulated: bool) -> LogitChunk {
    if emulated { EMULATED } else { CARD }
}

/// See [`Backend::linear_cross_entropy`].
pub(crate) fn linear_cross_entropy(cuda: &Cuda, args: LinearCrossEntropy) -> Result<()> {
    let LinearCrossEntropy { x, weight, targets, target_weights, scale, losses, d_x, d_weight } = args;
    let (rows, vocabulary) = (x.dim(0), weight.dim(0));
    if rows == 0 {
        return match d_weight {
            Some(d) if !d.accumulate => cuda.fill(d.tensor, 0.0),
            _ => Ok(()),
        };
    }
    let chunk = logits(cuda.is_emulated()).rows_of(rows, vocabulary, x.dtype().size());
    let all_logits = Tensor::empty(&[chunk, vocabulary], x.dtype(), x.device())?;
    let tracked = d_x.is_some() || d_weight.is_some();
    let all_lse = if tracked { None } else { Some(Tensor::empty(&[chunk], losses.dtype(), x.device())?) };
    for start in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - start);
        let part = |t: &Tensor| t.narrow(0, start, count);
        let (logits, x, targets, losses) = (all_logits.narrow(0, 0, count)?, part(x)?, part(targets)?, part(losses)?);
        cuda.matmul(Destination::write(&logits), &x, &weight.t()?, 1.0)?;
        if let Some(lse) = &all_lse {
            cross_entropy::forward(cuda, &losses, &lse.narrow(0, 0, count)?, &logits, &targets, target_weights)?;
            continue;
        }
        let (losses, logits, targets) = (&losses, &logits, &targets);
        let args = LossInPlace { losses, logits, scale, targets, weights: target_weights };
        cross_entropy::loss_in_place(cuda, &args)?;
        if let Some(d) = d_x {
            let tensor = part(d.tensor)?;
            cuda.matmul(Destination { tensor: &tensor, accumulate: d.accumulate }, logits, weight, 1.0)?;
        }
        if let Some(d) = d_weight {
            let accumulate = d.accumulate || start > 0;
            cuda.matmul(Destination { tensor: d.tensor, accumulate }, &logits.t()?, &x, 1.0)?;
        }
    }
    Ok(())
}
