//! What LayerNorm and RMSNorm have in common: what they are taken of, where the gradient of that goes, and the sums for the gradients of their
//! weights.

use half::bf16;

use super::access::{Access, View, ViewMut};
use super::isa::Isa;
use super::math::Float;
use super::reduce::add_rows;
use super::rows::Place;
use super::stored::Stored;
use super::stream::Writer;
use super::strips::{map, map_wide, wide};
use super::vectorized::vectorized;
use crate::backend::{Destination, Residual};
use crate::{Element, Result, Tensor};

/// Rows whose contributions to the gradients of the weights are summed before blocks are added.
pub(super) const ROWS: usize = 64;

/// What a norm is taken of: rows of x, or of `x + addend`, which are then written to a tensor of their own.
#[derive(Clone, Copy)]
pub(super) struct Input<'a, S> {
    x: View<'a, S>,
    /// The addend and the sum.
    residual: Option<(View<'a, S>, ViewMut<'a, S>)>,
}

impl<'a, S: Element> Input<'a, S> {
    /// The tensors that are read and those that are written, for the locks.
    pub(super) fn tensors<'t>(x: &'t Tensor, residual: Option<Residual<'t>>) -> (Vec<&'t Tensor>, Vec<&'t Tensor>) {
        let addend = residual.map(|residual| residual.addend);
        ([Some(x), addend].into_iter().flatten().collect(), residual.map(|residual| residual.sum).into_iter().collect())
    }

    pub(super) fn of(access: &'a Access, x: &'a Tensor, residual: Option<Residual<'a>>) -> Result<Self> {
        let residual = residual
            .map(|Residual { addend, sum }| -> Result<_> { Ok((access.view(addend)?, access.output(sum)?)) })
            .transpose()?;
        Ok(Input { x: access.view(x)?, residual })
    }

    /// How many rows there are.
    pub(super) fn count(&self) -> usize {
        self.x.rows()
    }

    /// Row `row` in the type that is computed in; a sum is written, and rounded, first. `buffer` is as long as a row.
    ///
    /// # Safety
    /// The row belongs to the caller's task.
    #[inline(always)]
    pub(super) unsafe fn row<'b, F: Float, I: Isa>(&self, isa: I, row: usize, buffer: &'b mut [F]) -> &'b [F]
    where
        S: Stored<F>,
        'a: 'b,
    {
        let x = self.x.row(row);
        let Some((addend, sum)) = &self.residual else { return wide(isa, x, buffer) };
        // SAFETY: the caller's promise.
        let (addend, sum) = (addend.row(row), unsafe { sum.row(row) });
        map(isa, false, [&mut *sum], [x, addend], |[x, addend]: [F; 2]| [x + addend]);
        wide(isa, sum, buffer)
    }
}

/// Where a task writes rows of the gradient of what a norm is taken of, and whether it adds them.
pub(super) enum Gradient<'a, F> {
    Wide(ViewMut<'a, F>, Writer<F>, bool),
    Bf16(ViewMut<'a, bf16>, Writer<bf16>, bool),
}

impl<'a, F: Float + Element> Gradient<'a, F> {
    /// For one task; `place` is that of the destination.
    pub(super) fn of(place: Place<'a, F>, destination: Destination) -> Self {
        let (len, accumulate) = (destination.tensor.len(), destination.accumulate);
        match place {
            Place::Wide(view) => Gradient::Wide(view, Writer::new(len, accumulate), accumulate),
            Place::Bf16(view) => Gradient::Bf16(view, Writer::new(len, accumulate), accumulate),
        }
    }

    /// Row `row` `(+)= f(x[0][i], x[1][i], ..)`.
    ///
    /// # Safety
    /// As [`ViewMut::row`].
    #[inline(always)]
    pub(super) unsafe fn put<I: Isa, const IN: usize>(
        &mut self,
        isa: I,
        row: usize,
        x: [&[F]; IN],
        f: impl Fn([F; IN]) -> F,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Gradient::Wide(view, writer, accumulate) => {
                    let row = view.row(row);
                    map_wide(isa, *accumulate, writer.begin(row), x, &f);
                    writer.end(row);
                }
                Gradient::Bf16(view, writer, accumulate) => {
                    let row = view.row(row);
                    map_wide(isa, *accumulate, writer.begin(row), x, &f);
                    writer.end(row);
                }
            }
        }
    }
}

vectorized! {
    fn put_row<'a, F>(isa: I, accumulate: bool, out: &'a mut [F], x: &'a [F]) -> () {
        match accumulate {
            true => out.iter_mut().zip(x).for_each(|(o, &x)| *o += x),
            false => out.copy_from_slice(x),
        }
    }
}

/// Adds the rows of all blocks in order into the first.
pub(super) fn add_blocks<F: Float>(partial: &mut [F], row: usize) {
    let (first, rest) = partial.split_at_mut(row);
    add_rows(first, rest);
}

/// Puts the gradient of a weight into its destination.
pub(super) fn put_weight<F: Float + Element>(access: &Access, out: Option<Destination>, gradient: &[F]) -> Result<()> {
    let Some(out) = out else { return Ok(()) };
    let view = access.destination::<F>(out)?;
    // SAFETY: the only reference to the locked output.
    put_row(out.accumulate, unsafe { view.slice(0..gradient.len()) }, gradient);
    Ok(())
}
