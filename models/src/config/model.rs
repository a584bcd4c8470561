//! The shape of a GPT: dialect, sizes and constants, and how many parameters they make.
//! LLaMA: RMSNorm, RoPE, SwiGLU, grouped-query attention, no biases; parameters
//! L*(2*C*H*D + 2*C*G*D + 3*C*F + 2*C) + C + V*C (+ V*C untied), with G key-value heads of size D and F the ffn width.
//! GPT-2: LayerNorm, learned positions, GELU, biases; L*(4*C*C + 2*C*F + 9*C + F) + 2*C + V*C + P*C (+ V*C untied).

use serde::{Deserialize, Serialize};

use super::choice::choice;
use crate::{Error, Result};

choice! {
    /// Which family of GPT the model belongs to; decides norms, positions, activation and biases.
    pub enum Dialect: "model dialect" {
        /// RMSNorm, RoPE, SwiGLU, grouped-query attention, no biases.
        Llama = "llama",
        /// LayerNorm, learned positions, GELU, biases.
        Gpt2 = "gpt2",
    }
}

/// Section `[model]`: everything that decides the shapes and the initial values of the parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Name of the preset that the other values started from; absent for a model that came from elsewhere.
    pub preset: Option<String>,
    /// Family of the model.
    pub dialect: Dialect,
    /// L, transformer blocks.
    pub layers: usize,
    /// C, width of the residual stream.
    pub hidden: usize,
    /// F, width of the feed-forward layer.
    pub ffn: usize,
    /// H, query heads.
    pub heads: usize,
    /// G, key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// V, rows of the embedding that are ever read; storage may pad them.
    pub vocab_size: usize,
    /// P, largest sequence length in positions; rows of the position embedding in GPT-2.
    pub max_positions: usize,
    /// Base of the RoPE frequencies.
    pub rope_theta: f64,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Whether the head is the transposed input embedding.
    pub tied_head: bool,
    /// Standard deviation of the initial weights.
    pub init_std: f64,
}

/// Positions up to which f32 counts exactly, and tables of the rotation fit into memory.
const MOST_POSITIONS: usize = 1 << 24;

impl ModelConfig {
    /// D, size of one head: hidden / heads.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }

    /// Weights of one block that are multiplied with activations: no biases, no norms.
    fn block_matrices(&self) -> usize {
        let (c, f) = (self.hidden, self.ffn);
        let attention = 2 * c * self.heads * self.head_dim() + 2 * c * self.kv_heads * self.head_dim();
        match self.dialect {
            Dialect::Llama => attention + 3 * c * f,
            Dialect::Gpt2 => attention + 2 * c * f,
        }
    }

    /// Weights that multiply activations in a forward pass: those of the blocks and the head, tied or not. The input
    /// embedding and the positions are looked up, not multiplied, and do not count.
    pub fn matrix_parameters(&self) -> usize {
        self.layers * self.block_matrices() + self.vocab_size * self.hidden
    }

    /// All trained numbers, a tied head counted once and rows of padding not at all.
    pub fn parameters(&self) -> usize {
        let c = self.hidden;
        let embedding = self.vocab_size * c;
        let vectors = match self.dialect {
            Dialect::Llama => self.layers * 2 * c + c,
            // Two norms of 2C, biases of q, k, v (3C), of the attention's output (C), of ffn up (F) and down (C).
            Dialect::Gpt2 => self.layers * (9 * c + self.ffn) + 2 * c + self.max_positions * c,
        };
        let head = if self.tied_head { 0 } else { embedding };
        self.layers * self.block_matrices() + vectors + embedding + head
    }

    /// Checks the shape for contradictions.
    ///
    /// # Errors
    /// A size of 0, heads that do not divide the width or the query heads, an odd head size with RoPE, grouped-query
    /// heads in GPT-2, or constants out of range.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("layers", self.layers),
            ("hidden", self.hidden),
            ("ffn", self.ffn),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("vocab_size", self.vocab_size),
            ("max_positions", self.max_positions),
        ];
        for (name, size) in sizes {
            if size == 0 {
                return fail(format!("model.{name} is 0, but must be at least 1"));
            }
        }
        // In f64, since the exact count of an absurd shape would overflow.
        let widest = sizes[1..].iter().map(|(_, size)| *size as f64).fold(0.0, f64::max);
        let too_many_ids = i32::try_from(self.vocab_size).is_err();
        if self.layers as f64 * widest * self.hidden as f64 > 1e15 || too_many_ids {
            return fail(format!(
                "a model with layers = {}, hidden = {}, ffn = {}, vocab_size = {} and max_positions = {} is beyond any \
                 machine: choose smaller sizes",
                self.layers, self.hidden, self.ffn, self.vocab_size, self.max_positions
            ));
        }
        if self.max_positions > MOST_POSITIONS {
            return fail(format!(
                "model.max_positions = {} is beyond any context that was trained: choose {MOST_POSITIONS} at most",
                self.max_positions
            ));
        }
        let (hidden, heads, kv_heads) = (self.hidden, self.heads, self.kv_heads);
        if !hidden.is_multiple_of(heads) {
            return fail(format!(
                "model.hidden = {hidden} does not divide into model.heads = {heads}: choose a number of heads that \
                 divides the width"
            ));
        }
        if !heads.is_multiple_of(kv_heads) {
            return fail(format!(
                "model.heads = {heads} does not divide into groups for model.kv_heads = {kv_heads}: kv_heads must \
                 divide heads (and equal it for plain multi-head attention)"
            ));
        }
        match self.dialect {
            Dialect::Llama if !self.head_dim().is_multiple_of(2) => {
                return fail(format!(
                    "model.hidden = {hidden} over model.heads = {heads} gives heads of odd size {}, which RoPE cannot \
                     rotate in pairs: choose sizes with an even quotient",
                    self.head_dim()
                ));
            }
            Dialect::Gpt2 if kv_heads != heads => {
                return fail(format!(
                    "model.kv_heads = {kv_heads} with model.heads = {heads}: the gpt2 dialect has no grouped-query \
                     attention; set kv_heads = {heads} or dialect = \"llama\""
                ));
            }
            _ => {}
        }
        let constants = [
            ("rope_theta", self.rope_theta, false),
            ("norm_eps", self.norm_eps, false),
            ("init_std", self.init_std, true),
        ];
        for (name, value, zero_is_fine) in constants {
            if !value.is_finite() || value < 0.0 || (value == 0.0 && !zero_is_fine) {
                return fail(format!("model.{name} = {value} must be a positive number"));
            }
        }
        Ok(())
    }
}

fn fail<T>(message: String) -> Result<T> {
    Err(Error::Config(message))
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parameters(preset: &str) -> usize {
        Config::preset(preset).unwrap().model.parameters()
    }

    #[test]
    fn presets_have_the_published_sizes() {
        // Exact counts of the tensors; in millions 369, 781, 1345 and 2694 (arXiv 2407.12665, table 1) and 124 (GPT-2).
        assert_eq!(parameters("370m"), 369_148_928);
        assert_eq!(parameters("780m"), 781_395_456);
        assert_eq!(parameters("1.3b"), 1_345_423_360);
        assert_eq!(parameters("2.7b"), 2_693_696_000);
        assert_eq!(parameters("gpt2"), 124_439_808);
        assert_eq!(parameters("tiny"), 857_216);
    }

    #[test]
    fn tying_removes_one_table_of_the_vocabulary() {
        let untied = Config::preset("tiny").unwrap().model;
        let tied = crate::config::ModelConfig { tied_head: true, ..untied.clone() };
        assert_eq!(untied.parameters() - tied.parameters(), 256 * 128);
        assert_eq!(untied.matrix_parameters(), tied.matrix_parameters(), "a tied head multiplies all the same");
    }

    #[test]
    fn contradictory_shapes_are_refused_with_their_values() {
        let llama = Config::preset("tiny").unwrap().model;
        let gpt2 = Config::preset("gpt2").unwrap().model;
        let cases: [(crate::config::ModelConfig, &[&str]); 7] = [
            (crate::config::ModelConfig { layers: 0, ..llama.clone() }, &["model.layers is 0"]),
            (crate::config::ModelConfig { heads: 3, kv_heads: 3, ..llama.clone() }, &["128", "heads = 3"]),
            (crate::config::ModelConfig { heads: 4, kv_heads: 3, ..llama.clone() }, &["heads = 4", "kv_heads = 3"]),
            (crate::config::ModelConfig { hidden: 6, ..llama.clone() }, &["odd size 3", "RoPE"]),
            (crate::config::ModelConfig { kv_heads: 4, ..gpt2.clone() }, &["kv_heads = 4", "dialect"]),
            (crate::config::ModelConfig { norm_eps: 0.0, ..llama.clone() }, &["norm_eps = 0"]),
            (crate::config::ModelConfig { rope_theta: f64::NAN, ..llama.clone() }, &["rope_theta = NaN"]),
        ];
        for (model, words) in cases {
            let message = model.validate().unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
        assert!(crate::config::ModelConfig { hidden: 36, heads: 12, kv_heads: 12, ..gpt2 }.validate().is_ok());
    }
}
