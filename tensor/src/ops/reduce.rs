//! Sums, means and maxima over dimensions.

use super::{gradient_kind, same_kind, writable};
use crate::backend::{Destination, Reduction, Unary, floating};
use crate::{Error, Result, Tensor};

impl Tensor {
    /// Reduces over `dims`, which keep size 1.
    pub fn reduce(&self, op: Reduction, dims: &[usize]) -> Result<Tensor> {
        floating("reduce", self.dtype())?;
        let mut shape = self.shape().to_vec();
        for &d in dims {
            *shape
                .get_mut(d)
                .ok_or_else(|| Error::shape("reduce", format!("no dimension {d} in {:?}", self.shape())))? = 1;
        }
        let out = Tensor::empty(&shape, self.dtype(), self.device())?;
        self.reduce_into(op, Destination::write(&out))?;
        Ok(out)
    }

    /// Reduces over the dimensions in which `out` has size 1 (or that it lacks in front) and this tensor does not: the backward of broadcasting.
    pub fn reduce_into(&self, op: Reduction, out: Destination) -> Result<()> {
        same_kind("reduce", &[self])?;
        gradient_kind("reduce", self, out.tensor)?;
        writable("reduce", out.tensor)?;
        let fits = || Error::shape("reduce", format!("{:?} does not reduce to {:?}", self.shape(), out.tensor.shape()));
        let lead = self.rank().checked_sub(out.tensor.rank()).ok_or_else(fits)?;
        let mut shape = vec![1; lead];
        shape.extend_from_slice(out.tensor.shape());
        if shape.iter().zip(self.shape()).any(|(&o, &x)| o != x && o != 1) {
            return Err(fits());
        }
        let tensor = out.tensor.view(&shape)?;
        self.device().backend().reduce(Destination { tensor: &tensor, accumulate: out.accumulate }, op, self)?;
        out.tensor.mark_written();
        Ok(())
    }

    /// Sum over `dims`, which keep size 1.
    pub fn sum(&self, dims: &[usize]) -> Result<Tensor> {
        self.reduce(Reduction::Sum, dims)
    }

    /// Sum of all elements, 0-d.
    pub fn sum_all(&self) -> Result<Tensor> {
        let dims: Vec<usize> = (0..self.rank()).collect();
        self.sum(&dims)?.reshape(&[])
    }

    /// Mean over `dims`, which keep size 1; NaN over nothing.
    pub fn mean(&self, dims: &[usize]) -> Result<Tensor> {
        let sum = self.sum(dims)?;
        let mut unique = dims.to_vec();
        unique.sort_unstable();
        unique.dedup();
        let count: usize = unique.iter().map(|&d| self.dim(d)).product();
        sum.unary_(Unary::Affine { mul: 1.0 / count as f64, add: 0.0 })?;
        Ok(sum)
    }

    /// Maximum over `dims`, which keep size 1.
    pub fn max(&self, dims: &[usize]) -> Result<Tensor> {
        self.reduce(Reduction::Max, dims)
    }
}
