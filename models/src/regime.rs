//! A training regime as a value: how many tokens one position reads (Ki) and predicts (Ko), and how the two stages
//! share context and batch. Position i of a window x reads x[i*Ki .. (i+1)*Ki] and is scored against x[(i+1)*Ki + k],
//! k < Ko, so a window of T positions holds T*Ki + Ko tokens and the next one starts T*Ki tokens later.
//! Ki = Ko = 1 is next-token training, Ki = Ko = K patch-level training (Shao, Meng, Zhou, arXiv 2407.12665);
//! Ki = K, Ko = 1 and Ki = 1, Ko = K are the input-only and output-only ablations (arXiv 2605.06546).

use crate::config::choice::choice;
use crate::{Error, Result};

choice! {
    /// Weight of the k-th token of a target patch in the loss.
    pub enum TargetWeights: "rule for target weights" {
        /// Every token of the patch counts the same.
        Uniform = "uniform",
        /// The k-th token, counted from 1, counts 1/k.
        Reciprocal = "1/k",
    }
}

choice! {
    /// What stays constant along a sequence when tokens are grouped into patches.
    pub enum PatchContext: "rule for the patch context" {
        /// T positions, so K*T tokens.
        Positions = "positions",
        /// T tokens, so T/K positions.
        Tokens = "tokens",
    }
}

choice! {
    /// What stays constant across the batch when tokens are grouped into patches.
    pub enum PatchBatch: "rule for the patch batch" {
        /// The number of sequences per step.
        Positions = "positions",
        /// Sequences times K, so that a patch step with the full context reads as many tokens as a token step.
        Tokens = "tokens",
    }
}

/// How a window of tokens becomes positions and targets. A plain value; two stages differ in nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regime {
    /// Ki, tokens averaged into one input position.
    pub input_patch: usize,
    /// Ko, tokens that one position predicts.
    pub target_patch: usize,
    /// Weights of the Ko targets of a position.
    pub target_weights: TargetWeights,
    /// Meaning of the sequence length.
    pub context: PatchContext,
    /// Meaning of the batch size.
    pub batch: PatchBatch,
}

impl Regime {
    /// Next-token training: one token in, one token predicted.
    pub const fn token() -> Self {
        Self::patch(1)
    }

    /// Patch-level training with patches of `k` tokens in and out, uniform weights, and T positions and B sequences
    /// kept as they are at token level.
    pub const fn patch(k: usize) -> Self {
        Regime {
            input_patch: k,
            target_patch: k,
            target_weights: TargetWeights::Uniform,
            context: PatchContext::Positions,
            batch: PatchBatch::Positions,
        }
    }

    /// True for Ki = Ko = 1.
    pub const fn is_token_level(&self) -> bool {
        self.input_patch == 1 && self.target_patch == 1
    }

    /// Positions of one window for a sequence length of `seq_len`: T, or T/Ki with a context counted in tokens.
    pub const fn positions(&self, seq_len: usize) -> usize {
        match self.context {
            PatchContext::Positions => seq_len,
            PatchContext::Tokens => seq_len / self.input_patch,
        }
    }

    /// Tokens from the start of one window to the start of the next: positions times Ki. This is what a window counts
    /// for in a budget of tokens; its targets reach Ko tokens into the next window.
    pub const fn advance(&self, seq_len: usize) -> usize {
        self.positions(seq_len) * self.input_patch
    }

    /// Tokens that one window holds, the targets of its last position included.
    pub const fn window_tokens(&self, seq_len: usize) -> usize {
        self.advance(seq_len) + self.target_patch
    }

    /// Sequences per step for a batch size of `batch_size`: B, or B/Ki with a batch counted in tokens.
    pub const fn sequences(&self, batch_size: usize) -> usize {
        match self.batch {
            PatchBatch::Positions => batch_size,
            PatchBatch::Tokens => batch_size / self.input_patch,
        }
    }

    /// Weights of the Ko targets, not normalised: the loss divides by the sum over the valid targets.
    pub fn weights(&self) -> Vec<f64> {
        (0..self.target_patch)
            .map(|k| match self.target_weights {
                TargetWeights::Uniform => 1.0,
                TargetWeights::Reciprocal => 1.0 / (k + 1) as f64,
            })
            .collect()
    }

    /// Checks the regime against a sequence length T and a batch size B.
    ///
    /// # Errors
    /// A patch size of 0; T = 0 or B = 0; T that Ki does not divide where the context counts tokens; B that Ki does
    /// not divide where the batch counts tokens.
    pub fn validate(&self, seq_len: usize, batch_size: usize) -> Result<()> {
        if self.input_patch == 0 || self.target_patch == 0 {
            return Err(Error::Config(
                "the patch size is 0, but a patch holds at least one token: use 1 for token-level training, \
                 or 2, 4, ..."
                    .into(),
            ));
        }
        let k = self.input_patch;
        if self.context == PatchContext::Tokens && !seq_len.is_multiple_of(k) {
            return Err(Error::Config(format!(
                "the context of {seq_len} tokens does not divide into patches of {k}: with patch_context = \"tokens\" \
                 the sequence length must be a multiple of the patch size; use {}, or patch_context = \"positions\"",
                neighbours(seq_len, k)
            )));
        }
        if self.batch == PatchBatch::Tokens && !batch_size.is_multiple_of(k) {
            return Err(Error::Config(format!(
                "the batch of {batch_size} sequences does not divide by the patch size {k}: with patch_batch = \
                 \"tokens\" a patch step has batch_size / patch_size sequences; use {}, or patch_batch = \"positions\"",
                neighbours(batch_size, k)
            )));
        }
        if seq_len == 0 || batch_size == 0 {
            return Err(Error::Config(format!(
                "a sequence length of {seq_len} and a batch size of {batch_size} leave nothing to train on: both must \
                 be at least 1"
            )));
        }
        Ok(())
    }
}

/// The multiples of `k` around `value`, as words: "248 or 252".
fn neighbours(value: usize, k: usize) -> String {
    let below = value / k * k;
    if below == 0 { format!("{k}") } else { format!("{below} or {}", below + k) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_the_four_regimes() {
        let seq_len = 8;
        let token = Regime::token();
        assert_eq!((token.positions(seq_len), token.advance(seq_len), token.window_tokens(seq_len)), (8, 8, 9));
        let patch = Regime::patch(4);
        assert_eq!((patch.positions(seq_len), patch.advance(seq_len), patch.window_tokens(seq_len)), (8, 32, 36));
        let input_only = Regime { target_patch: 1, ..patch };
        assert_eq!((input_only.advance(seq_len), input_only.window_tokens(seq_len)), (32, 33));
        let output_only = Regime { input_patch: 1, ..patch };
        assert_eq!((output_only.advance(seq_len), output_only.window_tokens(seq_len)), (8, 12));
        assert!(token.is_token_level() && !patch.is_token_level() && !output_only.is_token_level());
    }

    #[test]
    fn context_and_batch_counted_in_tokens() {
        let regime = Regime { context: PatchContext::Tokens, batch: PatchBatch::Tokens, ..Regime::patch(4) };
        assert_eq!((regime.positions(8), regime.advance(8), regime.window_tokens(8)), (2, 8, 12));
        assert_eq!(regime.sequences(16), 4);
        assert_eq!(Regime::patch(4).sequences(16), 16);
    }

    #[test]
    fn weights_are_not_normalised() {
        assert_eq!(Regime::patch(3).weights(), [1.0, 1.0, 1.0]);
        let reciprocal = Regime { target_weights: TargetWeights::Reciprocal, ..Regime::patch(4) };
        assert_eq!(reciprocal.weights(), [1.0, 0.5, 1.0 / 3.0, 0.25]);
    }

    #[test]
    fn mistakes_name_the_values_and_the_remedy() {
        let zero = Regime::patch(0).validate(8, 2).unwrap_err();
        assert!(zero.to_string().contains("patch size is 0") && zero.exit_code() == 2);
        for one_of_two in [Regime { input_patch: 0, ..Regime::token() }, Regime { target_patch: 0, ..Regime::token() }]
        {
            assert!(one_of_two.validate(8, 2).unwrap_err().to_string().contains("patch size is 0"));
        }
        assert!(Regime::patch(4).validate(250, 3).is_ok(), "K must divide T and B only where they count tokens");

        let context = Regime { context: PatchContext::Tokens, ..Regime::patch(4) };
        let message = context.validate(250, 3).unwrap_err().to_string();
        assert!(message.contains("250") && message.contains("248 or 252"), "{message}");
        assert!(context.validate(252, 3).is_ok());
        assert!(context.validate(0, 3).unwrap_err().to_string().contains("at least 1"));

        let batch = Regime { batch: PatchBatch::Tokens, ..Regime::patch(4) };
        let message = batch.validate(250, 3).unwrap_err().to_string();
        assert!(message.contains("batch of 3") && message.contains("use 4,"), "{message}");
        assert!(batch.validate(250, 8).is_ok());
    }

    #[test]
    fn names_in_files() {
        assert_eq!("1/k".parse::<TargetWeights>().unwrap(), TargetWeights::Reciprocal);
        let message = "bytes".parse::<PatchContext>().unwrap_err().to_string();
        assert!(message.contains("`bytes`") && message.contains("positions, tokens"), "{message}");
    }
}
