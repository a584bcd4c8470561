//! Fill, strided copy and cast.

use super::{expect_shape, same_device, writable};
use crate::index::IndexRange;
use crate::{DType, Layout, Result, Tensor};

impl Tensor {
    /// Sets every element to `value`, rounded to the dtype.
    pub fn fill_(&self, value: f64) -> Result<()> {
        writable("fill", self)?;
        self.device().backend().fill(self, value)?;
        if !self.dtype().is_float() {
            self.note_indices(Some(IndexRange::one(value as i64)));
        }
        self.mark_written();
        Ok(())
    }

    /// Overwrites the elements with those of `x`, which broadcasts to this shape, converted to this dtype.
    ///
    /// # Errors
    /// `x` does not broadcast; overlapping memory; different devices.
    pub fn copy_(&self, x: &Tensor) -> Result<()> {
        let x = x.broadcast_to(self.shape())?;
        expect_shape("copy", "the source", &x, self.shape())?;
        same_device("copy", &[self, &x])?;
        writable("copy", self)?;
        self.device().backend().copy(self, &x)?;
        if !self.dtype().is_float() {
            self.note_indices(if x.dtype() == self.dtype() { x.buffer().index_range() } else { None });
        }
        self.mark_written();
        Ok(())
    }

    /// A contiguous copy.
    pub fn copy(&self) -> Result<Tensor> {
        let out = Tensor::empty(self.shape(), self.dtype(), self.device())?;
        out.copy_(self)?;
        Ok(out)
    }

    /// The elements as `dtype`: this tensor if it has the dtype already, else a contiguous copy. Floats round to nearest even; float to
    /// integer truncates and saturates.
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype() {
            return Ok(self.clone());
        }
        let out = Tensor::empty(self.shape(), dtype, self.device())?;
        out.copy_(self)?;
        Ok(out)
    }

    /// The tensors one after the other along `dim`; all other sizes must be equal.
    ///
    /// # Errors
    /// No tensors, unequal shapes or dtypes.
    pub fn concat(tensors: &[&Tensor], dim: usize) -> Result<Tensor> {
        let first =
            *tensors.first().ok_or_else(|| crate::Error::shape("concat", "at least one tensor expected, got none"))?;
        let mut shape = first.shape().to_vec();
        if dim >= shape.len() {
            return Err(crate::Error::shape("concat", format!("no dimension {dim} in {shape:?}")));
        }
        shape[dim] = tensors.iter().map(|t| t.dim(dim)).sum();
        Layout::contiguous(&shape)?;
        let out = Tensor::empty(&shape, first.dtype(), first.device())?;
        let mut start = 0;
        for t in tensors {
            let mut expected = shape.clone();
            expected[dim] = t.dim(dim);
            expect_shape("concat", "every tensor", t, &expected)?;
            if t.dtype() != first.dtype() {
                return Err(crate::Error::dtype("concat", first.dtype(), t.dtype()));
            }
            out.narrow(dim, start, t.dim(dim))?.copy_(t)?;
            start += t.dim(dim);
        }
        Ok(out)
    }
}
