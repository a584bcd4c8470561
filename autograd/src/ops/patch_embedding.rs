//! Patch embedding: `y[n] = (1/K) sum_k table[ids[n, k]]`, table [V, C], ids [.., K], y [.., C]; K = 1 is the plain embedding.
//!
//! `d_table[v] = (1/K) sum over positions p of v of d_y[p / K]`, through the inverse of the ids, in a fixed order.
//! Source: Shao et al., arXiv 2407.12665, section 3.

use patchgpt_tensor::{ScatterIndex, Tensor};

use crate::function::apply_one;
use crate::{Context, Error, Function, Gradients, Result, Saved, Var};

struct PatchEmbedding {
    ids: Tensor,
    index: ScatterIndex,
}

impl Function for PatchEmbedding {
    fn name(&self) -> &'static str {
        "patch_embedding"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let table = inputs[0];
        if context.needs_any_gradient()
            && (self.index.vocabulary() != table.dim(0) || self.index.positions() != self.ids.len())
        {
            return Err(Error::value(
                self.name(),
                format!(
                    "the scatter index of {} ids in 0..{} expected, got one of {} ids in 0..{}",
                    self.ids.len(),
                    table.dim(0),
                    self.index.positions(),
                    self.index.vocabulary()
                ),
            ));
        }
        context.save(self.index.order());
        context.save(self.index.offsets());
        Ok(vec![table.patch_embedding(&self.ids)?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        let patch = self.ids.dim(self.ids.rank() - 1);
        d_inputs.wide().write(0, |d_table| d_y.patch_embedding_backward(&self.index, patch, d_table))
    }
}

impl Var {
    /// Mean of the K rows of this table [V, C] that `ids` i32 [.., K] name: [.., C]. `index` is the inverse of the ids, for backward.
    ///
    /// # Errors
    /// An id outside 0..V; an index that does not fit the ids.
    pub fn patch_embedding(&self, ids: &Tensor, index: &ScatterIndex) -> Result<Var> {
        let (ids, index) = (ids.clone(), index.clone());
        apply_one(PatchEmbedding { ids, index }, &[self])
    }
}
