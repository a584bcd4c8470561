//! Rotary position embedding.

use super::{expect_shape, same_kind, through};
use crate::{DType, Destination, Device, Error, Result, Tensor};

impl Tensor {
    /// Cosines and sines of the angles `t * base^(-2i/D)` for positions t in `start..start + positions` and i in 0..D/2, two tensors
    /// [positions, D/2] in the accumulator of `dtype`; angles are computed in f64.
    ///
    /// # Errors
    /// An odd head size, a base that is not positive, a dtype other than f32, f64 and bf16.
    pub fn rope_table(
        start: usize,
        positions: usize,
        head_size: usize,
        base: f64,
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, Tensor)> {
        crate::backend::floating("rope_table", dtype)?;
        let sound = head_size.is_multiple_of(2) && base > 0.0 && base.is_finite();
        if !sound {
            return Err(Error::value(
                "rope_table",
                format!("an even head size and a positive base expected, got {head_size} and {base}"),
            ));
        }
        let half = head_size / 2;
        let angle = |i: usize| (start + i / half) as f64 * base.powf(-2.0 * (i % half) as f64 / head_size as f64);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f64> = (0..positions * half).map(|i| f(angle(i))).collect();
            Tensor::from_slice(&values, &[positions, half], device)?.cast(dtype.accumulator())
        };
        Ok((table(f64::cos)?, table(f64::sin)?))
    }

    /// Rotates every head of [B, T, H, D] by the angles of its position, `cos` and `sin` in the accumulator dtype; `inverse` rotates back, which is also the gradient.
    pub fn rope(&self, cos: &Tensor, sin: &Tensor, inverse: bool) -> Result<Tensor> {
        let out = Tensor::empty(self.shape(), self.dtype(), self.device())?;
        self.rope_into(cos, sin, inverse, &out)?;
        Ok(out)
    }

    /// [`Tensor::rope`] into `out`, which may be this tensor.
    pub fn rope_into(&self, cos: &Tensor, sin: &Tensor, inverse: bool, out: &Tensor) -> Result<()> {
        let op = "rope";
        let dtype = same_kind(op, &[self, out])?;
        if same_kind(op, &[cos, sin])? != dtype.accumulator() {
            return Err(Error::dtype(op, dtype.accumulator(), cos.dtype()));
        }
        super::same_device(op, &[self, cos])?;
        let [_, t, _, d] = *self.shape() else {
            return Err(Error::shape(op, format!("[B, T, H, D] expected, got {:?}", self.shape())));
        };
        if d % 2 != 0 {
            return Err(Error::shape(op, format!("an even head size expected, got {d}")));
        }
        for (what, table) in [("cos", cos), ("sin", sin)] {
            expect_shape(op, what, table, &[t, d / 2])?;
        }
        expect_shape(op, "the output", out, self.shape())?;
        let (x, cos, sin) = (self.contiguous_rows()?, cos.contiguous()?, sin.contiguous()?);
        through(op, Destination::write(out), out.layout().has_contiguous_rows(), |out| {
            x.device().backend().rope(out.tensor, &x, &cos, &sin, inverse)
        })
    }
}
