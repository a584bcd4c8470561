//! Batched matrix products over any strides.

use super::{gradient_kind, same_kind, writable};
use crate::backend::Destination;
use crate::layout::broadcast_shape;
use crate::{Error, Result, Tensor};

fn product_shape(a: &Tensor, b: &Tensor) -> Result<Vec<usize>> {
    let (ra, rb) = (a.rank(), b.rank());
    if ra < 2 || rb < 2 || a.dim(ra - 1) != b.dim(rb - 2) {
        return Err(Error::shape(
            "matmul",
            format!("[.., m, k] @ [.., k, n] expected, got {:?} @ {:?}", a.shape(), b.shape()),
        ));
    }
    let mut shape = broadcast_shape("matmul", &a.shape()[..ra - 2], &b.shape()[..rb - 2])?;
    shape.extend([a.dim(ra - 2), b.dim(rb - 1)]);
    Ok(shape)
}

impl Tensor {
    /// `self @ other`: [.., m, k] @ [.., k, n] = [.., m, n]; leading dimensions broadcast. Use [`Tensor::t`] for transposed factors.
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        let shape = product_shape(self, other)?;
        let out = Tensor::empty(&shape, self.dtype(), self.device())?;
        self.matmul_into(other, 1.0, Destination::write(&out))?;
        Ok(out)
    }

    /// `out (+)= alpha * self @ other`; `out` in the factors' dtype or its accumulator's.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not fit; an output that overlaps a factor.
    pub fn matmul_into(&self, other: &Tensor, alpha: f64, out: Destination) -> Result<()> {
        same_kind("matmul", &[self, other])?;
        gradient_kind("matmul", self, out.tensor)?;
        writable("matmul", out.tensor)?;
        let shape = product_shape(self, other)?;
        super::expect_shape("matmul", "the output", out.tensor, &shape)?;
        let lead = &shape[..shape.len() - 2];
        let spread = |t: &Tensor| {
            let mut full = lead.to_vec();
            full.extend_from_slice(&t.shape()[t.rank() - 2..]);
            t.broadcast_to(&full)
        };
        self.device().backend().matmul(out, &spread(self)?, &spread(other)?, alpha)?;
        out.tensor.mark_written();
        Ok(())
    }
}
