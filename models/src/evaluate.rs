//! Evaluation at token level, whatever the regime of training: the loss over fixed windows of text.
//! loss = -sum log p(token) / tokens, in nats; perplexity = e^loss; bits per byte = loss * tokens / (bytes * ln 2), which does
//! not depend on the tokenizer.

use crate::data::EvaluationSet;
use crate::gpt::{Gpt, TrainBatch};
use crate::{Error, Result};

use patchgpt_autograd::no_grad;
use patchgpt_tensor::Tensor;

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// Mean loss of a token, in nats.
    pub loss: f64,
    /// e^loss.
    pub perplexity: f64,
    /// Bits to code a byte of the text.
    pub bits_per_byte: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Bytes of text these tokens stand for.
    pub bytes: u64,
}

impl Evaluation {
    /// The three measures from a loss summed over tokens, in nats.
    ///
    /// # Errors
    /// No tokens, or tokens that stand for no text.
    pub fn from_sum(summed_loss: f64, tokens: u64, bytes: u64) -> Result<Evaluation> {
        if tokens == 0 || bytes == 0 {
            return Err(Error::Data(format!(
                "an evaluation over {tokens} tokens and {bytes} bytes has no mean: give text to evaluate on"
            )));
        }
        let loss = summed_loss / tokens as f64;
        Ok(Evaluation {
            loss,
            perplexity: loss.exp(),
            bits_per_byte: summed_loss / (bytes as f64 * std::f64::consts::LN_2),
            tokens,
            bytes,
        })
    }
}

/// Scores the windows of `set`, `sequences` at a time, without a graph. The result is NaN or infinite where the model's is.
///
/// # Errors
/// Windows longer than the model's positions, ids outside its vocabulary, a file that cannot be read.
pub fn evaluate(gpt: &Gpt, set: &EvaluationSet, sequences: usize) -> Result<Evaluation> {
    let one = Tensor::scalar(1.0, gpt.dtype().accumulator(), gpt.device())?;
    let mut sums = Vec::new();
    for batch in set.batches(sequences, gpt.config().vocab_size) {
        let batch = TrainBatch::new(&batch?, &[1.0], gpt)?;
        sums.push(no_grad(|| gpt.loss(&batch, &one))?);
    }
    // The device is asked for numbers only when it has been given all the work.
    let summed = sums.iter().try_fold(0.0, |sum, part| Ok::<_, Error>(sum + part.item()?))?;
    Evaluation::from_sum(summed, set.tokens(), set.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_by_hand() {
        // 100 tokens of 4 bytes each, every one of them coded in 8 bits.
        let bits = 8.0 * std::f64::consts::LN_2;
        let found = Evaluation::from_sum(100.0 * bits, 100, 400).unwrap();
        assert!((found.loss - bits).abs() < 1e-12);
        assert!((found.perplexity - 256.0).abs() < 1e-9);
        assert!((found.bits_per_byte - 2.0).abs() < 1e-12);
        assert!(Evaluation::from_sum(1.0, 0, 4).is_err());
        assert!(Evaluation::from_sum(1.0, 4, 0).is_err());
        assert!(Evaluation::from_sum(f64::NAN, 4, 4).unwrap().perplexity.is_nan());
    }
}
