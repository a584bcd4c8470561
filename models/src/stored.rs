//! Tensors in safetensors files: to the host as little-endian bytes, and back.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};
use patchgpt_tensor::{DType, Device, Element, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, View};

use crate::{Error, Result, atomic_file};

/// A tensor on the host, ready to be written.
pub(crate) struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    /// A copy of an f32 or f64 tensor.
    ///
    /// # Errors
    /// Another dtype.
    pub(crate) fn new(tensor: &Tensor) -> Result<Stored> {
        let (dtype, bytes) = match tensor.dtype() {
            DType::F64 => (Dtype::F64, tensor.to_vec::<f64>()?.iter().flat_map(|value| value.to_le_bytes()).collect()),
            DType::F32 => (Dtype::F32, tensor.to_vec::<f32>()?.iter().flat_map(|value| value.to_le_bytes()).collect()),
            other => {
                return Err(Error::Checkpoint(format!("a tensor of {other} cannot be stored: expected f32 or f64")));
            }
        };
        Ok(Stored { dtype, shape: tensor.shape().to_vec(), bytes })
    }

    /// The values, little-endian, in row-major order.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes a safetensors file; what was there is replaced at one instant, when the new file is whole and on disk.
///
/// # Errors
/// A folder that cannot be written, a full disk.
pub(crate) fn write<S: AsRef<str> + Ord + std::fmt::Display>(
    path: &Path,
    tensors: Vec<(S, Stored)>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    atomic_file::replace_with(path, |partial| {
        safetensors::serialize_to_file(tensors, Some(metadata), partial).map_err(|error| match error {
            SafeTensorError::IoError(error) => error,
            other => std::io::Error::other(other),
        })
    })
}

/// A floating-point tensor of a file on the device; `None` for other types.
///
/// # Errors
/// Memory that the device does not have.
pub(crate) fn to_tensor(found: &TensorView, device: &Device) -> Result<Option<Tensor>> {
    let (bytes, shape) = (found.data(), found.shape());
    Ok(Some(match found.dtype() {
        Dtype::F32 => decode(bytes, f32::from_le_bytes, shape, device)?,
        Dtype::F64 => decode(bytes, f64::from_le_bytes, shape, device)?,
        Dtype::F16 => decode(bytes, f16::from_le_bytes, shape, device)?,
        Dtype::BF16 => decode(bytes, bf16::from_le_bytes, shape, device)?,
        _ => return Ok(None),
    }))
}

fn decode<E: Element, const SIZE: usize>(
    bytes: &[u8],
    element: fn([u8; SIZE]) -> E,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor> {
    let (elements, _) = bytes.as_chunks::<SIZE>();
    let values: Vec<E> = elements.iter().map(|&bytes| element(bytes)).collect();
    Ok(Tensor::from_slice(&values, shape, device)?)
}
