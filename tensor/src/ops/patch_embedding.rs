//! Embedding of patches: the mean of K token embeddings; K = 1 is the plain embedding.

use super::{as_rows, expect_shape, gradient_kind, same_device, same_kind, through_rows, width};
use crate::index::check_indices;
use crate::{Destination, Error, Result, ScatterIndex, Tensor};

impl Tensor {
    /// Mean of the K rows of this table [V, C] that `ids` [.., K] name: [.., C].
    ///
    /// # Errors
    /// An id outside 0..V; K of 0.
    pub fn patch_embedding(&self, ids: &Tensor) -> Result<Tensor> {
        let op = "patch_embedding";
        same_kind(op, &[self])?;
        same_device(op, &[self, ids])?;
        let [v, c] = *self.shape() else {
            return Err(Error::shape(op, format!("a table [V, C] expected, got {:?}", self.shape())));
        };
        let k = width(op, ids)?;
        if k == 0 {
            return Err(Error::shape(op, format!("ids [.., K] with K at least 1 expected, got {:?}", ids.shape())));
        }
        check_indices(op, ids, v, false)?;
        let mut shape = ids.shape().to_vec();
        shape[ids.rank() - 1] = c;
        let (table, ids) = (self.contiguous_rows()?, as_rows(op, &ids.contiguous()?)?);
        let out = Tensor::empty(&[ids.dim(0), c], table.dtype(), table.device())?;
        table.device().backend().patch_embedding(&out, &table, &ids)?;
        out.mark_written();
        out.view(&shape)
    }

    /// Gradient of [`Tensor::patch_embedding`] for the table; this tensor is d_out [.., C], `index` the inverse of the ids.
    pub fn patch_embedding_backward(&self, index: &ScatterIndex, patch: usize, d_table: Destination) -> Result<()> {
        let op = "patch_embedding_backward";
        same_kind(op, &[self])?;
        gradient_kind(op, self, d_table.tensor)?;
        same_device(op, &[self, index.order()])?;
        let d_out = as_rows(op, self)?;
        expect_shape(op, "d_table", d_table.tensor, &[index.vocabulary(), d_out.dim(1)])?;
        if patch == 0 || d_out.dim(0) * patch != index.positions() {
            return Err(Error::shape(
                op,
                format!(
                    "{} rows of {patch} ids do not make the {} positions of the index",
                    d_out.dim(0),
                    index.positions()
                ),
            ));
        }
        through_rows(op, d_table, |d_table| {
            d_out.device().backend().patch_embedding_backward(d_table, &d_out, index, patch)
        })
    }
}
