//! Where a task writes rows [D] of an output [B, T, H, D].

use super::factors::{AHEAD, ask_for};
use crate::cpu::access::{Access, ViewMut};
use crate::cpu::isa::Isa;
use crate::cpu::math::Float;
use crate::cpu::rows::Place;
use crate::cpu::stored::Stored;
use crate::{Destination, Element, Result};

/// Values that are stored together.
const STRIP: usize = 32;

/// An output and whether it is added to.
pub(super) struct Output<'a, F> {
    place: Place<'a, F>,
    add: bool,
}

impl<'a, F: Float + Element> Output<'a, F> {
    pub(super) fn of(access: &'a Access, Destination { tensor, accumulate }: Destination<'a>) -> Result<Self> {
        Ok(Output { place: Place::of(access, tensor)?, add: accumulate })
    }

    /// Asks for the row [`AHEAD`] positions after `at`, to be written soon: those of a head are too far apart for a processor to foresee.
    #[inline(always)]
    pub(super) fn ask(&self, at: [usize; 3]) {
        match &self.place {
            Place::Wide(view) => ask_after(view, at),
            Place::Bf16(view) => ask_after(view, at),
        }
    }

    /// Row `at` (batch, position, head) `(+)= x * factor`.
    ///
    /// # Safety
    /// The row belongs to the caller's task.
    #[inline(always)]
    pub(super) unsafe fn put<I: Isa>(&self, isa: I, at: [usize; 3], x: &[F], factor: F) {
        // SAFETY: the caller's promise.
        unsafe {
            match &self.place {
                Place::Wide(view) => put_row(isa, row_of(view, at), x, factor, self.add),
                Place::Bf16(view) => put_row(isa, row_of(view, at), x, factor, self.add),
            }
        }
    }
}

/// Asks for the row [`AHEAD`] positions after `at`.
#[inline(always)]
fn ask_after<S: Element>(view: &ViewMut<S>, at: [usize; 3]) {
    let (layout, strides) = (view.layout(), view.layout().strides());
    let start = at[0] * strides[0] + (at[1] + AHEAD) * strides[1] + at[2] * strides[2];
    ask_for(view.at(layout.offset()).wrapping_add(start), layout.shape()[3]);
}

/// Row `at` (batch, position, head).
///
/// # Safety
/// As [`ViewMut::row`].
#[inline(always)]
unsafe fn row_of<'a, S: Element>(view: &ViewMut<'a, S>, at: [usize; 3]) -> &'a mut [S] {
    let (shape, strides) = (view.layout().shape(), view.layout().strides());
    assert!(at[0] < shape[0] && at[1] < shape[1] && at[2] < shape[2]);
    let start = view.layout().offset() + at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2];
    // SAFETY: the row lies inside the view, whose last dimension is contiguous; exclusive by the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(view.at(start), shape[3]) }
}

/// `to (+)= x * factor`, of one length.
#[inline(always)]
fn put_row<F: Float, S: Stored<F>, I: Isa>(isa: I, to: &mut [S], x: &[F], factor: F, add: bool) {
    let ((strips, rest), (x_strips, x_rest)) = (to.as_chunks_mut::<STRIP>(), x.as_chunks::<STRIP>());
    for (to, x) in strips.iter_mut().zip(x_strips) {
        put_strip(isa, to, x, factor, add);
    }
    for (to, x) in rest.iter_mut().zip(x_rest) {
        put_strip(isa, std::array::from_mut(to), &[*x], factor, add);
    }
}

#[inline(always)]
fn put_strip<F: Float, S: Stored<F>, I: Isa, const N: usize>(
    isa: I,
    to: &mut [S; N],
    x: &[F; N],
    factor: F,
    add: bool,
) {
    let mut values = *x;
    for value in &mut values {
        *value *= factor;
    }
    if add {
        for (value, to) in values.iter_mut().zip(&*to) {
            *value = to.wide() + *value;
        }
    }
    S::put(isa, &values, to);
}
