//! The work of a primitive, from the shapes of what it reads and writes.

use crate::{Destination, Residual, Tensor};

/// Operations, and the tensors that are moved. Made step by step: `Work::of(flops).writes(out).reads(&[a, b])`.
pub(super) struct Work<'a> {
    flops: f64,
    bytes: f64,
    outputs: Vec<&'a Tensor>,
    inputs: Vec<&'a Tensor>,
}

/// Bytes of the elements that a view reaches, those that are repeated (stride 0) counted once.
fn distinct_bytes(tensor: &Tensor) -> f64 {
    let sizes = tensor.shape().iter().zip(tensor.strides());
    let distinct: f64 = sizes.map(|(&size, &stride)| if stride == 0 { size.min(1) } else { size } as f64).product();
    distinct * tensor.dtype().size() as f64
}

impl<'a> Work<'a> {
    /// Work of so many operations.
    pub(super) fn of(flops: f64) -> Self {
        Work { flops, bytes: 0.0, outputs: Vec::new(), inputs: Vec::new() }
    }

    /// Inputs, each read once.
    pub(super) fn reads(mut self, tensors: &[&'a Tensor]) -> Self {
        self.bytes += tensors.iter().map(|tensor| distinct_bytes(tensor)).sum::<f64>();
        self.inputs.extend_from_slice(tensors);
        self
    }

    /// Outputs that are overwritten.
    pub(super) fn fills(mut self, tensors: &[&'a Tensor]) -> Self {
        self.bytes += tensors.iter().map(|tensor| distinct_bytes(tensor)).sum::<f64>();
        self.outputs.extend_from_slice(tensors);
        self
    }

    /// Tensors that are read and written back.
    pub(super) fn updates(mut self, tensors: &[&'a Tensor]) -> Self {
        self.bytes += 2.0 * tensors.iter().map(|tensor| distinct_bytes(tensor)).sum::<f64>();
        self.outputs.extend_from_slice(tensors);
        self
    }

    /// Outputs, some of which may be added to or left out.
    pub(super) fn writes<D: Into<Option<Destination<'a>>>>(self, destinations: impl IntoIterator<Item = D>) -> Self {
        destinations.into_iter().filter_map(Into::into).fold(self, |work, destination| {
            if destination.accumulate { work.updates(&[destination.tensor]) } else { work.fills(&[destination.tensor]) }
        })
    }

    /// What a norm adds to its input, one operation an element.
    pub(super) fn adds(mut self, residual: Option<Residual<'a>>) -> Self {
        let Some(Residual { addend, sum }) = residual else { return self };
        self.flops += count(sum);
        self.fills(&[sum]).reads(&[addend])
    }

    /// A tensor of which only so many bytes are read.
    pub(super) fn reads_part(mut self, tensor: &'a Tensor, bytes: f64) -> Self {
        self.bytes += bytes;
        self.inputs.push(tensor);
        self
    }

    pub(super) fn flops(&self) -> f64 {
        self.flops
    }

    pub(super) fn bytes(&self) -> f64 {
        self.bytes
    }

    pub(super) fn shapes(&self) -> Vec<Vec<usize>> {
        self.outputs.iter().chain(&self.inputs).map(|tensor| tensor.shape().to_vec()).collect()
    }
}

/// Elements, as a number to compute with.
pub(super) fn count(tensor: &Tensor) -> f64 {
    tensor.len() as f64
}

/// Scores of causal attention that exist, over all heads, times the head size; q [B, T, H, D], k [B, S, G, D].
pub(super) fn scores(q: &Tensor, k: &Tensor) -> f64 {
    let (t, s) = (q.dim(1) as f64, k.dim(1) as f64);
    count(q) * (s - (t - 1.0) / 2.0)
}
