//! Model FLOPs: the arithmetic that the model demands, not what a program spends on it. Per position of a sequence of T:
//! training 6*N + 6*L*C*T, forward alone a third of it. N counts the weights that multiply (the head too, tied or not;
//! not the input embedding and the positions); L*C*T is causal attention, of which half of the T x T scores exist, with
//! C = heads * head size. After Chowdhery et al. (PaLM, arXiv 2204.02311, appendix B), halved for causality.

use crate::config::ModelConfig;

/// The formula in words, to be printed beside every number that comes from it.
pub const FORMULA: &str = "model FLOPs per position = 6*N + 6*L*C*T (causal attention; N counts the matrices and the head, \
                           not the input embedding; C = heads * head size; forward alone a third)";

/// Model FLOPs of forward and backward for one position of a sequence of `positions`.
pub fn training_per_position(model: &ModelConfig, positions: usize) -> f64 {
    3.0 * forward_per_position(model, positions)
}

/// Model FLOPs of a forward pass for one position of a sequence of `positions`.
pub fn forward_per_position(model: &ModelConfig, positions: usize) -> f64 {
    let weights = model.matrix_parameters() as f64;
    let attention = model.layers as f64 * (model.heads * model.head_dim()) as f64 * positions as f64;
    2.0 * weights + 2.0 * attention
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn tiny_by_hand() {
        let model = Config::preset("tiny").unwrap().model;
        let matrices = 4 * (4 * 128 * 128 + 3 * 128 * 344) + 256 * 128;
        assert_eq!(training_per_position(&model, 256), (6 * matrices + 6 * 4 * 128 * 256) as f64);
        assert_eq!(training_per_position(&model, 256), 5_726_208.0);
        assert_eq!(forward_per_position(&model, 256) * 3.0, training_per_position(&model, 256));
    }

    #[test]
    fn a_tied_head_counts_and_positions_do_not() {
        let model = Config::preset("gpt2").unwrap().model;
        let matrices = 12 * (4 * 768 * 768 + 2 * 768 * 3072) + 50_257 * 768;
        assert_eq!(forward_per_position(&model, 0), (2 * matrices) as f64);
        let longer = ModelConfig { max_positions: 4096, ..model.clone() };
        assert_eq!(forward_per_position(&longer, 128), forward_per_position(&model, 128));
    }

    #[test]
    fn grouped_queries_save_projections_but_not_scores() {
        let model = Config::preset("tiny").unwrap().model;
        let grouped = ModelConfig { kv_heads: 1, ..model.clone() };
        let saved = (2 * 4 * 2 * 128 * 64) as f64;
        assert_eq!(forward_per_position(&model, 64) - forward_per_position(&grouped, 64), saved);
    }
}
