//! Keys and values of the positions already read, so that a new token costs one position of arithmetic:
//! per layer two tensors [1, capacity, G, D], filled from the front.

use patchgpt_tensor::{DType, Device, Tensor};

use crate::Result;
use crate::config::ModelConfig;

/// Keys (rotated where the model rotates) and values of one layer.
pub(super) struct LayerCache {
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

/// The cache of a model for one sequence; made by [`Gpt::cache`](super::Gpt::cache).
pub struct KvCache {
    layers: Vec<LayerCache>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    pub(super) fn new(config: &ModelConfig, capacity: usize, dtype: DType, device: &Device) -> Result<KvCache> {
        let shape = [1, capacity, config.kv_heads, config.head_dim()];
        let empty = || Tensor::zeros(&shape, dtype, device);
        let layers =
            (0..config.layers).map(|_| Ok(LayerCache { keys: empty()?, values: empty()? })).collect::<Result<_>>()?;
        Ok(KvCache { layers, len: 0, capacity })
    }

    /// Positions read so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position has been read.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets every position.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn layer(&self, layer: usize) -> &LayerCache {
        &self.layers[layer]
    }

    pub(super) fn grow(&mut self, positions: usize) {
        self.len += positions;
    }
}
