//! The checked methods of [`Tensor`]: each checks shapes, dtypes and devices, allocates what it returns, and calls the primitive.

mod adamw;
mod causal_attention;
mod copy;
mod cross_entropy;
mod elementwise;
mod gelu;
mod layer_norm;
mod linear;
mod linear_cross_entropy;
mod matmul;
mod patch_embedding;
mod random;
mod reduce;
mod rms_norm;
mod rope;
mod softmax;
mod swiglu;

pub use causal_attention::CausalAttention;
pub use cross_entropy::CrossEntropy;
pub use layer_norm::LayerNorm;
pub use linear::linear_by_parts;
pub(crate) use linear_cross_entropy::{HOST_LOGITS, linear_cross_entropy_by_chunks, linear_cross_entropy_on_host};
pub use rms_norm::RmsNorm;

use crate::backend::{Destination, floating};
use crate::{DType, Error, Result, Tensor};

/// Checks that all tensors live on one device.
fn same_device(op: &'static str, tensors: &[&Tensor]) -> Result<()> {
    for pair in tensors.windows(2) {
        if pair[0].device() != pair[1].device() {
            return Err(Error::Device {
                op,
                first: pair[0].device().to_string(),
                second: pair[1].device().to_string(),
            });
        }
    }
    Ok(())
}

/// Checks that all tensors live on one device and have one dtype, f32, f64 or bf16.
fn same_kind(op: &'static str, tensors: &[&Tensor]) -> Result<DType> {
    let dtype = tensors[0].dtype();
    floating(op, dtype)?;
    same_device(op, tensors)?;
    match tensors.iter().find(|t| t.dtype() != dtype) {
        Some(other) => Err(Error::dtype(op, dtype, other.dtype())),
        None => Ok(dtype),
    }
}

/// Checks that a gradient lives on the device of `x` and has its dtype or, as gradients of parameters do, its accumulator's.
fn gradient_kind(op: &'static str, x: &Tensor, gradient: &Tensor) -> Result<()> {
    same_device(op, &[x, gradient])?;
    if gradient.dtype() != x.dtype() && gradient.dtype() != x.dtype().accumulator() {
        return Err(Error::dtype(op, x.dtype(), gradient.dtype()));
    }
    Ok(())
}

/// Checks a shape.
fn expect_shape(op: &'static str, what: &str, tensor: &Tensor, expected: &[usize]) -> Result<()> {
    if tensor.shape() != expected {
        return Err(Error::shape(op, format!("{what} must have the shape {expected:?}, got {:?}", tensor.shape())));
    }
    Ok(())
}

/// What the sum of x and `addend` is made of and into: both as rows, and memory for it.
fn addition(op: &'static str, x: &Tensor, addend: &Tensor) -> Result<[Tensor; 3]> {
    let dtype = same_kind(op, &[x, addend])?;
    expect_shape(op, "the addend", addend, x.shape())?;
    let (x, addend) = (as_rows(op, x)?, as_rows(op, addend)?);
    let sum = Tensor::empty(x.shape(), dtype, x.device())?;
    Ok([x, addend, sum])
}

/// The last dimension's size.
///
/// # Errors
/// A 0-d tensor.
fn width(op: &'static str, tensor: &Tensor) -> Result<usize> {
    tensor.shape().last().copied().ok_or_else(|| Error::shape(op, "at least one dimension expected, got a 0-d tensor"))
}

/// The tensor as [N, last dimension] with contiguous rows; a copy where strides do not allow a view.
fn as_rows(op: &'static str, tensor: &Tensor) -> Result<Tensor> {
    let width = width(op, tensor)?;
    let rows: usize = tensor.shape()[..tensor.rank() - 1].iter().product();
    tensor.contiguous_rows()?.reshape(&[rows, width])
}

/// Checks that an output can be written: no element stands in it twice.
fn writable(op: &'static str, tensor: &Tensor) -> Result<()> {
    if tensor.layout().may_overlap_itself() {
        return Err(Error::Overlap { op });
    }
    Ok(())
}

/// Runs `body` with the destination as it is if `fits`, else with a fresh contiguous tensor that is then copied or added to it.
fn through(
    op: &'static str,
    destination: Destination,
    fits: bool,
    body: impl FnOnce(Destination) -> Result<()>,
) -> Result<()> {
    writable(op, destination.tensor)?;
    if fits {
        body(destination)?;
    } else {
        let t = destination.tensor;
        let fresh = Tensor::empty(t.shape(), t.dtype(), t.device())?;
        body(Destination::write(&fresh))?;
        match destination.accumulate {
            true => t.add_(&fresh)?,
            false => t.copy_(&fresh)?,
        }
    }
    destination.tensor.mark_written();
    Ok(())
}

/// Runs `body` with the destination as [N, last dimension] with contiguous rows.
fn through_rows(
    op: &'static str,
    destination: Destination,
    body: impl FnOnce(Destination) -> Result<()>,
) -> Result<()> {
    let width = width(op, destination.tensor)?;
    let rows: usize = destination.tensor.shape()[..destination.tensor.rank() - 1].iter().product();
    let fits = destination.tensor.layout().has_contiguous_rows() && destination.tensor.view(&[rows, width]).is_ok();
    through(op, destination, fits, |d| {
        let flat = d.tensor.view(&[rows, width])?;
        body(Destination { tensor: &flat, accumulate: d.accumulate })
    })
}

/// Runs `body` with both destinations, if given, as rows.
fn through_optional(
    op: &'static str,
    destination: Option<Destination>,
    body: impl FnOnce(Option<Destination>) -> Result<()>,
) -> Result<()> {
    match destination {
        Some(d) if d.tensor.rank() >= 1 => through_rows(op, d, |d| body(Some(d))),
        Some(d) => {
            Err(Error::shape(op, format!("a gradient of at least one dimension expected, got {:?}", d.tensor.shape())))
        }
        None => body(None),
    }
}

/// Runs `body` with a 1-d destination, contiguous.
fn through_vector(
    op: &'static str,
    destination: Option<Destination>,
    body: impl FnOnce(Option<Destination>) -> Result<()>,
) -> Result<()> {
    match destination {
        Some(d) => through(op, d, d.tensor.is_contiguous(), |d| body(Some(d))),
        None => body(None),
    }
}
