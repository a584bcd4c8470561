//! Functions of one and two arguments, element by element, over any strides.
//!
//! Work goes row by row along the last dimension: contiguous rows in vector loops, an argument whose row is one repeated value as a
//! constant, other strides element by element. Contiguous tensors are one long row, cut into blocks. Moves each argument and the output once.

use super::access::Access;
use super::isa::Isa;
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::stored::{Stored, with_stored};
use super::stream::Writer;
use super::strips::map_at;
use super::vectorized::vectorized;
use super::with_float;
use crate::backend::{Binary, Destination, Unary};
use crate::{Layout, Result, Tensor};

/// Elements of a block of a contiguous tensor.
const BLOCK: usize = 8192;

/// Layouts of equal shape as rows: (rows, width), one row of blocks if all are contiguous.
fn rows_of(layouts: &[&Layout]) -> (usize, usize) {
    let shape = layouts[0].shape();
    let n = layouts[0].len();
    if layouts.iter().all(|l| l.is_contiguous()) {
        return (n.div_ceil(BLOCK), BLOCK);
    }
    let width = shape.last().copied().unwrap_or(1).max(1);
    (n / width, width)
}

/// Where row `r` of a view starts, how many elements it has and its stride.
fn row_at(layout: &Layout, contiguous: bool, r: usize, width: usize) -> (usize, usize, usize) {
    if contiguous {
        let start = r * width;
        return (layout.offset() + start, width.min(layout.len() - start), 1);
    }
    let stride = layout.strides().last().copied().unwrap_or(1);
    (layout.offset_of(r * width), width, if width == 1 { 1 } else { stride })
}

#[inline(always)]
fn apply<F: Float, I: Isa>(isa: I, op: Unary, x: F) -> F {
    match op {
        Unary::Neg => -x,
        Unary::Exp => x.exp(isa),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Tanh => x.tanh(isa),
        Unary::Sigmoid => x.sigmoid(isa),
        Unary::Square => x * x,
        Unary::Recip => F::ONE / x,
        Unary::Affine { mul, add } => x * F::from_f64(mul) + F::from_f64(add),
    }
}

/// Loops over a body with the op as a constant, so that each op gets a vector loop of its own.
macro_rules! per_unary {
    ($op:expr, $o:ident => $body:expr) => {
        match $op {
            Unary::Neg => {
                let $o = Unary::Neg;
                $body
            }
            Unary::Exp => {
                let $o = Unary::Exp;
                $body
            }
            Unary::Log => {
                let $o = Unary::Log;
                $body
            }
            Unary::Sqrt => {
                let $o = Unary::Sqrt;
                $body
            }
            Unary::Tanh => {
                let $o = Unary::Tanh;
                $body
            }
            Unary::Sigmoid => {
                let $o = Unary::Sigmoid;
                $body
            }
            Unary::Square => {
                let $o = Unary::Square;
                $body
            }
            Unary::Recip => {
                let $o = Unary::Recip;
                $body
            }
            Unary::Affine { mul, add } => {
                let $o = Unary::Affine { mul, add };
                $body
            }
        }
    };
}

vectorized! {
    /// `n` elements from `x` to `out`, addresses that the caller vouches for; they may be the same.
    fn unary_row<'a, F, S>(isa: I, op: Unary, n: usize, out: *mut S, x: *const S) -> () {
        // SAFETY: the caller passes rows inside the views' spans.
        per_unary!(op, o => unsafe { map_at(isa, false, n, [out], [x], |[x]: [F; 1]| [apply(isa, o, x)]) })
    }
}

vectorized! {
    /// The same for rows with strides.
    fn unary_strided<'a, F, S>(isa: I, op: Unary, n: usize, out: (*mut S, usize), x: (*const S, usize)) -> () {
        for i in 0..n {
            // SAFETY: the caller passes rows inside the views' spans.
            unsafe { put(isa, out.0.add(i * out.1), false, apply(isa, op, (*x.0.add(i * x.1)).wide())) }
        }
    }
}

/// `out = op(x)`.
pub(super) fn unary(pool: &Pool, out: &Tensor, op: Unary, x: &Tensor) -> Result<()> {
    with_float!("unary", out.dtype(), F => with_stored!(out.dtype(), F, S => {
        let access = Access::new("unary", &[x], &[out])?;
        let (o, x) = (access.output::<S>(out)?, access.view::<S>(x)?);
        let in_place = o.is_same(&x);
        let (rows, width) = rows_of(&[o.layout(), x.layout()]);
        let whole = o.layout().is_contiguous() && x.layout().is_contiguous();
        let (count, per_block) = blocks(rows, width * 4);
        pool.run(count, |b| {
            let mut writer = Writer::new(out.len(), in_place);
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                let ((to, n, to_stride), (at, _, stride)) =
                    (row_at(o.layout(), whole, r, width), row_at(x.layout(), whole, r, width));
                let (y, x) = (o.at(to), x.at(at));
                if to_stride != 1 || stride != 1 {
                    unary_strided::<F, S>(op, n, (y, to_stride), (x, stride));
                } else if in_place {
                    unary_row::<F, S>(op, n, y, x);
                } else {
                    // SAFETY: rows of different tasks are disjoint, and no other reference to this one is alive.
                    let row = unsafe { std::slice::from_raw_parts_mut(y, n) };
                    writer.write(row, |out| unary_row::<F, S>(op, n, out.as_mut_ptr(), x));
                }
            }
        });
        Ok(())
    }))
}

#[inline(always)]
fn combine<F: Float>(op: Binary, a: F, b: F) -> F {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Max => a.max(b),
        Binary::Min => -(-a).max(-b),
    }
}

macro_rules! per_binary {
    ($op:expr, $o:ident => $body:expr) => {
        match $op {
            Binary::Add => {
                let $o = Binary::Add;
                $body
            }
            Binary::Sub => {
                let $o = Binary::Sub;
                $body
            }
            Binary::Mul => {
                let $o = Binary::Mul;
                $body
            }
            Binary::Div => {
                let $o = Binary::Div;
                $body
            }
            Binary::Max => {
                let $o = Binary::Max;
                $body
            }
            Binary::Min => {
                let $o = Binary::Min;
                $body
            }
        }
    };
}

/// Stores a value, or adds it.
///
/// # Safety
/// The place is valid for reads and writes.
#[inline(always)]
unsafe fn put<F: Float, S: Stored<F>, I: Isa>(isa: I, out: *mut S, accumulate: bool, value: F) {
    // SAFETY: the caller's promise.
    unsafe {
        let value = if accumulate { (*out).wide() + value } else { value };
        S::put(isa, &[value], &mut *out.cast::<[S; 1]>());
    }
}

vectorized! {
    /// `n` elements of `out (+)= op(a, b)`, addresses that the caller vouches for; `out` may be `a` or `b`.
    fn binary_row<'a, F, S>(isa: I, op: Binary, accumulate: bool, n: usize, out: *mut S, a: *const S, b: *const S) -> () {
        per_binary!(op, o => {
            // SAFETY: the caller passes rows inside the views' spans.
            unsafe { map_at(isa, accumulate, n, [out], [a, b], |[a, b]: [F; 2]| [combine(o, a, b)]) }
        })
    }
}

vectorized! {
    /// The same with one value for b.
    fn binary_constant<'a, F, S>(isa: I, op: Binary, accumulate: bool, n: usize, out: *mut S, a: *const S, b: F) -> () {
        per_binary!(op, o => {
            // SAFETY: as above.
            unsafe { map_at(isa, accumulate, n, [out], [a], |[a]: [F; 1]| [combine(o, a, b)]) }
        })
    }
}

vectorized! {
    /// The same for rows with strides.
    fn binary_strided<'a, F, S>(
        isa: I,
        op: Binary,
        accumulate: bool,
        n: usize,
        out: (*mut S, usize),
        a: (*const S, usize),
        b: (*const S, usize),
    ) -> () {
        for i in 0..n {
            // SAFETY: the caller passes rows inside the views' spans.
            unsafe {
                let value = combine(op, (*a.0.add(i * a.1)).wide(), (*b.0.add(i * b.1)).wide());
                put(isa, out.0.add(i * out.1), accumulate, value);
            }
        }
    }
}

/// `out (+)= op(a, b)`.
pub(super) fn binary(pool: &Pool, out: Destination, op: Binary, a: &Tensor, b: &Tensor) -> Result<()> {
    let Destination { tensor, accumulate } = out;
    with_float!("binary", tensor.dtype(), F => with_stored!(tensor.dtype(), F, S => {
        let access = Access::new("binary", &[a, b], &[tensor])?;
        let o = access.destination::<S>(out)?;
        let (a, b) = (access.view::<S>(a)?, access.view::<S>(b)?);
        let in_place = o.is_same(&a) || o.is_same(&b);
        let layouts = [o.layout(), a.layout(), b.layout()];
        let (rows, width) = rows_of(&layouts);
        let whole = layouts.iter().all(|layout| layout.is_contiguous());
        let (count, per_block) = blocks(rows, width * 2);
        pool.run(count, |block| {
            let mut writer = Writer::new(tensor.len(), accumulate || in_place);
            for r in block * per_block..((block + 1) * per_block).min(rows) {
                let [(to, n, to_stride), (at, _, a_stride), (bt, _, b_stride)] =
                    layouts.map(|layout| row_at(layout, whole, r, width));
                let (y, a, b) = (o.at(to), a.at(at), b.at(bt));
                let row = |out: *mut S| match b_stride {
                    // SAFETY: an element of the view, which is not written: rows that are have stride 1.
                    0 => binary_constant::<F, S>(op, accumulate, n, out, a, unsafe { *b }.wide()),
                    _ => binary_row::<F, S>(op, accumulate, n, out, a, b),
                };
                if to_stride != 1 || a_stride != 1 || b_stride > 1 {
                    binary_strided::<F, S>(op, accumulate, n, (y, to_stride), (a, a_stride), (b, b_stride));
                } else if in_place {
                    row(y);
                } else {
                    // SAFETY: rows of different tasks are disjoint, and no other reference to this one is alive.
                    writer.write(unsafe { std::slice::from_raw_parts_mut(y, n) }, |out| row(out.as_mut_ptr()));
                }
            }
        });
        Ok(())
    }))
}
