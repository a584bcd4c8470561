//! Causal self-attention over joined projections [B, T, (H+2G)*D] (queries, keys, values along the last dimension):
//! whole sequences for training, and a few new positions over cached keys and values for generation.
//! scale = 1/sqrt(D); RoPE turns halves by position * theta^(-2i/D), positions counted from 0 in patches as in tokens.

use patchgpt_autograd::{Result as GraphResult, Var};
use patchgpt_tensor::{DType, Device, Result as TensorResult, Tensor};

use super::cache::LayerCache;
use crate::Result;
use crate::config::{Dialect, ModelConfig};

/// Heads, scale and rotation of every attention layer of a model.
#[derive(Clone)]
pub(super) struct Attention {
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    scale: f64,
    /// Cosines and sines [P, D/2] of all positions; `None` where positions are learned.
    rope: Option<(Tensor, Tensor)>,
}

impl Attention {
    pub(super) fn new(config: &ModelConfig, dtype: DType, device: &Device) -> Result<Attention> {
        let (head_size, positions) = (config.head_dim(), config.max_positions);
        let rope = match config.dialect {
            Dialect::Llama => Some(Tensor::rope_table(0, positions, head_size, config.rope_theta, dtype, device)?),
            Dialect::Gpt2 => None,
        };
        Ok(Attention {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_size,
            scale: 1.0 / (head_size as f64).sqrt(),
            rope,
        })
    }

    /// [B, T, (H+2G)*D] to [B, T, H*D] over a whole sequence of T = `positions`.
    pub(super) fn train(&self, joined: &Var, positions: usize) -> GraphResult<Var> {
        let rope = self.rotation(0, positions)?;
        let rope = rope.as_ref().map(|(cos, sin)| (cos, sin));
        joined.self_attention(self.heads, self.kv_heads, rope, self.scale)
    }

    /// [1, n, (H+2G)*D] to [1, n, H*D] for the n positions from `start` on; their keys and values go into the cache.
    pub(super) fn extend(&self, joined: &Tensor, cache: &LayerCache, start: usize) -> TensorResult<Tensor> {
        let new = joined.dim(1);
        let (queries, groups) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let part = |from: usize, heads: usize| {
            let width = heads * self.head_size;
            joined.narrow(2, from, width)?.reshape(&[1, new, heads, self.head_size])
        };
        let mut q = part(0, self.heads)?;
        let k = part(queries, self.kv_heads)?;
        let v = part(queries + groups, self.kv_heads)?;
        let place = |cached: &Tensor| cached.narrow(1, start, new);
        match self.rotation(start, new)? {
            Some((cos, sin)) => {
                q = q.rope(&cos, &sin, false)?;
                k.rope_into(&cos, &sin, false, &place(&cache.keys)?)?;
            }
            None => place(&cache.keys)?.copy_(&k)?,
        }
        place(&cache.values)?.copy_(&v)?;
        let seen = |cached: &Tensor| cached.narrow(1, 0, start + new);
        let attended = q.causal_attention(&seen(&cache.keys)?, &seen(&cache.values)?, self.scale)?;
        attended.output.reshape(&[1, new, queries])
    }

    /// Cosines and sines of `length` positions from `start` on.
    fn rotation(&self, start: usize, length: usize) -> TensorResult<Option<(Tensor, Tensor)>> {
        match &self.rope {
            Some((cos, sin)) => Ok(Some((cos.narrow(0, start, length)?, sin.narrow(0, start, length)?))),
            None => Ok(None),
        }
    }
}
