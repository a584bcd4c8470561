//! Element-wise functions of one and two tensors, with broadcasting.

use super::{same_kind, writable};
use crate::backend::{Binary, Destination, Unary, floating};
use crate::layout::broadcast_shape;
use crate::{Error, Result, Tensor};

impl Tensor {
    /// `op` of every element.
    pub fn unary(&self, op: Unary) -> Result<Tensor> {
        floating("unary", self.dtype())?;
        let out = Tensor::empty(self.shape(), self.dtype(), self.device())?;
        self.device().backend().unary(&out, op, self)?;
        out.mark_written();
        Ok(out)
    }

    /// Replaces every element by `op` of it.
    pub fn unary_(&self, op: Unary) -> Result<()> {
        floating("unary", self.dtype())?;
        writable("unary", self)?;
        self.device().backend().unary(self, op, self)?;
        self.mark_written();
        Ok(())
    }

    /// `op` of the elements of two tensors that broadcast to a common shape.
    pub fn binary(&self, op: Binary, other: &Tensor) -> Result<Tensor> {
        let shape = broadcast_shape("binary", self.shape(), other.shape())?;
        let dtype = same_kind("binary", &[self, other])?;
        let out = Tensor::empty(&shape, dtype, self.device())?;
        self.binary_into(op, other, Destination::write(&out))?;
        Ok(out)
    }

    /// `op` of the elements of two tensors that broadcast to the shape of `out`. `out` may be one of them.
    pub fn binary_into(&self, op: Binary, other: &Tensor, out: Destination) -> Result<()> {
        same_kind("binary", &[self, other, out.tensor])?;
        writable("binary", out.tensor)?;
        let (a, b) = (self.broadcast_to(out.tensor.shape())?, other.broadcast_to(out.tensor.shape())?);
        out.tensor.device().backend().binary(out, op, &a, &b)?;
        out.tensor.mark_written();
        Ok(())
    }

    /// `self + other`
    pub fn add(&self, other: &Tensor) -> Result<Tensor> {
        self.binary(Binary::Add, other)
    }

    /// `self - other`
    pub fn sub(&self, other: &Tensor) -> Result<Tensor> {
        self.binary(Binary::Sub, other)
    }

    /// `self * other`, element by element
    pub fn mul(&self, other: &Tensor) -> Result<Tensor> {
        self.binary(Binary::Mul, other)
    }

    /// `self / other`
    pub fn div(&self, other: &Tensor) -> Result<Tensor> {
        self.binary(Binary::Div, other)
    }

    /// `self += other`, which broadcasts to this shape.
    pub fn add_(&self, other: &Tensor) -> Result<()> {
        self.binary_into(Binary::Add, other, Destination::write(self))
    }

    /// `self *= other`, which broadcasts to this shape.
    pub fn mul_(&self, other: &Tensor) -> Result<()> {
        self.binary_into(Binary::Mul, other, Destination::write(self))
    }

    /// `self * mul + add` with constants.
    pub fn affine(&self, mul: f64, add: f64) -> Result<Tensor> {
        self.unary(Unary::Affine { mul, add })
    }

    /// The largest absolute difference from `other`, as a host number; NaN if either holds one. Waits for the device.
    ///
    /// # Errors
    /// Unequal shapes.
    pub fn max_abs_diff(&self, other: &Tensor) -> Result<f64> {
        if self.shape() != other.shape() {
            return Err(Error::shape(
                "max_abs_diff",
                format!("equal shapes expected, got {:?} and {:?}", self.shape(), other.shape()),
            ));
        }
        let (a, b) = (self.to_f64_vec()?, other.to_f64_vec()?);
        Ok(a.iter().zip(&b).fold(0.0, |m: f64, (x, y)| {
            let d = if x == y { 0.0 } else { (x - y).abs() };
            if m.is_nan() || d.is_nan() { f64::NAN } else { m.max(d) }
        }))
    }
}
