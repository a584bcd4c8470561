//! Functions of one and two arguments, element by element, over any strides.
//!
//! Work goes row by row along the last dimension: contiguous rows in vector loops, an argument whose row is one repeated value as a
//! constant, other strides element by element. Contiguous tensors are one long row, cut into blocks. Moves each argument and the output once.

use super::access::{Access, View, ViewMut};
use super::isa::Isa;
use super::math::Float;
use super::parallel::{Pool, blocks};
use super::stream::Writer;
use super::vectorized::vectorized;
use super::with_float;
use crate::backend::{Binary, Destination, Unary};
use crate::{Element, Layout, Result, Tensor};

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

/// A row of an argument.
#[derive(Clone, Copy)]
enum Row<'a, F> {
    /// Neighbours in memory.
    Slice(&'a [F]),
    /// One value repeated.
    Constant(F),
    /// First address and stride.
    Strided(*const F, usize),
}

impl<'a, F: Float + Element> Row<'a, F> {
    fn of(view: &View<'a, F>, (start, n, stride): (usize, usize, usize)) -> Self {
        match stride {
            // SAFETY: the row lies inside the view's span, locked for reading.
            1 => Row::Slice(unsafe { std::slice::from_raw_parts(view.at(start), n) }),
            // SAFETY: as above.
            0 => Row::Constant(unsafe { *view.at(start) }),
            s => Row::Strided(view.at(start), s),
        }
    }
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
    fn unary_row<'a, F>(isa: I, op: Unary, out: &'a mut [F], x: &'a [F]) -> () {
        per_unary!(op, o => out.iter_mut().zip(x).for_each(|(y, &x)| *y = apply(isa, o, x)))
    }
}

vectorized! {
    fn unary_in_place<'a, F>(isa: I, op: Unary, x: &'a mut [F]) -> () {
        per_unary!(op, o => x.iter_mut().for_each(|x| *x = apply(isa, o, *x)))
    }
}

vectorized! {
    /// Strided rows: `n` elements from `x` to `out`, addresses that the caller vouches for.
    fn unary_strided<'a, F>(isa: I, op: Unary, n: usize, out: (*mut F, usize), x: (*const F, usize)) -> () {
        for i in 0..n {
            // SAFETY: the caller passes rows inside the views' spans.
            unsafe { *out.0.add(i * out.1) = apply(isa, op, *x.0.add(i * x.1)) }
        }
    }
}

/// `out = op(x)`.
pub(super) fn unary(pool: &Pool, out: &Tensor, op: Unary, x: &Tensor) -> Result<()> {
    with_float!("unary", out.dtype(), F => {
        let access = Access::converting(pool, "unary", &[x], &[out])?;
        let (o, x) = (access.output::<F>(out)?, access.view::<F>(x)?);
        let in_place = o.is_same(&x);
        let (rows, width) = rows_of(&[o.layout(), x.layout()]);
        let whole = o.layout().is_contiguous() && x.layout().is_contiguous();
        let (count, per_block) = blocks(rows, width * 4);
        pool.run(count, |b| {
            let mut writer = Writer::new(out.len(), false);
            for r in b * per_block..((b + 1) * per_block).min(rows) {
                let to = row_at(o.layout(), whole, r, width);
                let row = Row::of(&x, row_at(x.layout(), whole, r, width));
                match row {
                    // SAFETY: rows of different tasks are disjoint, and no other reference to this one is alive.
                    _ if in_place && to.2 == 1 => unary_in_place(op, unsafe { slice_mut(&o, to) }),
                    Row::Slice(x) if to.2 == 1 && !in_place => {
                        // SAFETY: as above; the input is another row.
                        writer.write(unsafe { slice_mut(&o, to) }, |out| unary_row(op, out, x))
                    }
                    Row::Slice(x) => unary_strided(op, to.1, (o.at(to.0), to.2), (x.as_ptr(), 1)),
                    Row::Constant(x) => unary_strided(op, to.1, (o.at(to.0), to.2), (&x, 0)),
                    Row::Strided(x, stride) => unary_strided(op, to.1, (o.at(to.0), to.2), (x, stride)),
                }
            }
        });
        Ok(())
    })
}

/// A row of the output with stride 1.
///
/// # Safety
/// As [`ViewMut::row`].
#[allow(clippy::mut_from_ref)]
unsafe fn slice_mut<'a, F: Element>(view: &ViewMut<'a, F>, (start, n, _): (usize, usize, usize)) -> &'a mut [F] {
    // SAFETY: inside the view's span, locked for writing; exclusive by the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(view.at(start), n) }
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

#[inline(always)]
fn put<F: Float>(out: &mut F, accumulate: bool, value: F) {
    *out = if accumulate { *out + value } else { value };
}

vectorized! {
    /// One row of `out (+)= op(a, b)`.
    fn binary_row<'a, F>(isa: I, op: Binary, accumulate: bool, out: &'a mut [F], a: &'a [F], b: &'a [F]) -> () {
        per_binary!(op, o => match accumulate {
            true => out.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y += combine(o, a, b)),
            false => out.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = combine(o, a, b)),
        })
    }
}

vectorized! {
    /// One row of `out (+)= op(a, constant)`.
    fn binary_constant<'a, F>(isa: I, op: Binary, accumulate: bool, out: &'a mut [F], a: &'a [F], b: F) -> () {
        per_binary!(op, o => out.iter_mut().zip(a).for_each(|(y, &a)| put(y, accumulate, combine(o, a, b))))
    }
}

vectorized! {
    /// One row of `a = op(a, b)`.
    fn binary_left<'a, F>(isa: I, op: Binary, a: &'a mut [F], b: &'a [F]) -> () {
        per_binary!(op, o => a.iter_mut().zip(b).for_each(|(a, &b)| *a = combine(o, *a, b)))
    }
}

vectorized! {
    /// One row of `b = op(a, b)`.
    fn binary_right<'a, F>(isa: I, op: Binary, a: &'a [F], b: &'a mut [F]) -> () {
        per_binary!(op, o => a.iter().zip(b).for_each(|(&a, b)| *b = combine(o, a, *b)))
    }
}

/// `out (+)= op(a, b)`.
pub(super) fn binary(pool: &Pool, out: Destination, op: Binary, a: &Tensor, b: &Tensor) -> Result<()> {
    let Destination { tensor, accumulate } = out;
    with_float!("binary", tensor.dtype(), F => {
        let access = Access::converting(pool, "binary", &[a, b], &[tensor])?;
        let o = access.destination::<F>(out)?;
        let (a, b) = (access.view::<F>(a)?, access.view::<F>(b)?);
        let (left, right) = (o.is_same(&a), o.is_same(&b));
        let (rows, width) = rows_of(&[o.layout(), a.layout(), b.layout()]);
        let whole = [o.layout(), a.layout(), b.layout()].iter().all(|l| l.is_contiguous());
        let (count, per_block) = blocks(rows, width * 2);
        pool.run(count, |block| {
            let mut writer = Writer::new(tensor.len(), accumulate);
            for r in block * per_block..((block + 1) * per_block).min(rows) {
                let to = row_at(o.layout(), whole, r, width);
                let (at, bt) = (row_at(a.layout(), whole, r, width), row_at(b.layout(), whole, r, width));
                if to.2 == 1 && !accumulate && left != right && at.2 == 1 && bt.2 == 1 {
                    // Only the argument that is not the output is read through a slice of its own.
                    let other = if left { Row::of(&b, bt) } else { Row::of(&a, at) };
                    // SAFETY: rows of different tasks are disjoint.
                    let out = unsafe { slice_mut(&o, to) };
                    match other {
                        Row::Slice(b) if left => binary_left(op, out, b),
                        Row::Slice(a) => binary_right(op, a, out),
                        _ => {}
                    }
                } else if to.2 == 1 && !left && !right && at.2 == 1 && bt.2 <= 1 {
                    // SAFETY: as above; neither argument is the output.
                    let out = unsafe { slice_mut(&o, to) };
                    match (Row::of(&a, at), Row::of(&b, bt)) {
                        (Row::Slice(a), Row::Slice(b)) => {
                            writer.write(out, |out| binary_row(op, accumulate, out, a, b));
                        }
                        (Row::Slice(a), Row::Constant(b)) => {
                            writer.write(out, |out| binary_constant(op, accumulate, out, a, b));
                        }
                        _ => {}
                    }
                } else {
                    for i in 0..to.1 {
                        // SAFETY: inside the spans of the views; rows of different tasks are disjoint.
                        unsafe {
                            let value = combine::<F>(op, *a.at(at.0 + i * at.2), *b.at(bt.0 + i * bt.2));
                            put(&mut *o.at(to.0 + i * to.2), accumulate, value);
                        }
                    }
                }
            }
        });
        Ok(())
    })
}
