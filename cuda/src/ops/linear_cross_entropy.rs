//! The head and its loss together: for each chunk of rows, logits by a product, their losses and, in their place, their gradient by one kernel, and two
//! products for the gradients of x and of the weight. Logits exist for one chunk at a time.
//!
//! FLOPs: 2 N C V for the losses alone, 6 N C V with both gradients. Bytes: each logit written by the product, then read and written by the
//! kernel (read twice where a row does not fit in shared memory), then read by two products; the weight read twice a chunk, its gradient
//! read and written once a chunk.
//!
//! What cutting the rows into chunks costs: each chunk moves (2 * 2 + 8) V C bytes that do not shrink with it, the weight twice in bf16 and its f32 gradient
//! there and back. Of R rows it makes 6 R C V FLOPs, so that, were nothing of it to overlap with arithmetic, it would add `2 F / (R b)` of the products'
//! time at F FLOP/s and b bytes/s, whatever C and V are. On paper (989 TFLOP/s, 3.35 TB/s and 80 GiB: R is 3072 for V = 50257 and 5120 for V = 32000) that is
//! 0.14 ms beside 0.72 ms in GPT-2 124M (C = 768), 16% of the head's time, and 0.23 ms beside 2.04 ms in LLaMA 1.3B (C = 2048), 10% of it: upper bounds, since the
//! products read their factors while they multiply. Without the reads of the weight it is two thirds of that. Twice the memory would halve it.

use patchgpt_tensor::{Backend, Destination, LinearCrossEntropy, LogitChunk, Result, Tensor};

use super::cross_entropy::{self, LossInPlace};
use crate::device::Cuda;

/// The part of a card's memory that logits take.
const PART: usize = 256;
/// Logits are a multiple of this: cards of one kind tell slightly different sizes, by their driver and whether memory is checked (ECC).
const STEP: usize = 16 << 20;
/// Enough rows to fill a card with products.
const ROWS: usize = 1024;
/// Rows of logits begin at multiples of this many bytes, whatever the vocabulary: cuBLASLt's fast algorithms and packs of values need 16, a line of the
/// second-level cache has 128.
const ALIGNMENT: usize = 128;
/// The logit of columns beyond the vocabulary: its exponential beside any other is 0, and it is finite, so that nothing makes a NaN of it.
const NOWHERE: f64 = -1e30;
/// The emulated device's: small, so that small tests have several chunks.
pub(crate) const EMULATED: LogitChunk = LogitChunk { bytes: 4 << 10, rows: 8, alignment: 16 };

/// The logits that exist at a time on a card with so many bytes of memory: 1/256 of it to the nearest 16 MiB, so 320 MiB of 80 GiB and 96 MiB of
/// 24 GiB, and at least 1024 rows. Chunks decide in which order the weight's gradient is summed, so its last bits: cards of other sizes differ there.
pub(crate) fn of_card(memory: usize) -> LogitChunk {
    LogitChunk { bytes: (memory / PART + STEP / 2) / STEP * STEP, rows: ROWS, alignment: ALIGNMENT }
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
    let logits = if cuda.is_emulated() { EMULATED } else { of_card(cuda.info().memory) };
    let size = x.dtype().size();
    let (chunk, columns) = (logits.rows_of(rows, vocabulary, size), logits.columns_of(vocabulary, size));
    let all_logits = Tensor::empty(&[chunk, columns], x.dtype(), x.device())?;
    let tracked = d_x.is_some() || d_weight.is_some();
    let all_lse = if tracked { None } else { Some(Tensor::empty(&[chunk], losses.dtype(), x.device())?) };
    for start in (0..rows).step_by(chunk) {
        let count = chunk.min(rows - start);
        let part = |t: &Tensor| t.narrow(0, start, count);
        let (aligned, x, targets, losses) = (all_logits.narrow(0, 0, count)?, part(x)?, part(targets)?, part(losses)?);
        let logits = aligned.narrow(1, 0, vocabulary)?;
        cuda.matmul(Destination::write(&logits), &x, &weight.t()?, 1.0)?;
        if columns > vocabulary {
            cuda.fill(&aligned.narrow(1, vocabulary, columns - vocabulary)?, NOWHERE)?;
        }
        if let Some(lse) = &all_lse {
            cross_entropy::forward(cuda, &losses, &lse.narrow(0, 0, count)?, &aligned, &targets, target_weights)?;
            continue;
        }
        let (losses, targets) = (&losses, &targets);
        let args = LossInPlace { losses, logits: &aligned, scale, targets, weights: target_weights };
        cross_entropy::loss_in_place(cuda, &args)?;
        if let Some(d) = d_x {
            let tensor = part(d.tensor)?;
            cuda.matmul(Destination { tensor: &tensor, accumulate: d.accumulate }, &logits, weight, 1.0)?;
        }
        if let Some(d) = d_weight {
            let accumulate = d.accumulate || start > 0;
            cuda.matmul(Destination { tensor: d.tensor, accumulate }, &logits.t()?, &x, 1.0)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_a_part_of_the_memory_and_no_driver_decides_them() {
        let mebibytes = |gibibytes: f64| of_card((gibibytes * 2f64.powi(30)) as usize).bytes >> 20;
        assert_eq!([24.0, 40.0, 80.0, 140.0].map(mebibytes), [96, 160, 320, 560]);
        // As drivers tell cards of 24, 40 and 80 GB.
        assert_eq!([23.5, 39.4, 79.1, 79.6].map(mebibytes), [96, 160, 320, 320]);
        // bf16 logits of GPT-2's vocabulary; where memory is small, what fills a card.
        assert_eq!(of_card(80 << 30).rows_of(1 << 20, 50257, 2), 3072);
        assert_eq!(of_card(80 << 30).columns_of(50257, 2), 50304);
        assert_eq!(of_card(24 << 30).rows_of(1 << 20, 50257, 2), 1024);
        assert_eq!(of_card(0).rows_of(1 << 20, 50257, 2), 1024);
    }
}
