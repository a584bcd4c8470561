//! Sums and maxima over any dimensions.
//!
//! Two cases are fast: over trailing dimensions (each output is one run of the input) and over leading ones (column sums: blocks of rows are summed
//! into partial rows, which are added in order). Anything else is first copied so that the reduced dimensions come last. Long f32 sums are cut into
//! blocks whose sums are added in order, which keeps the error near sqrt(n) roundings. Reads the input once.

use super::access::Access;
use super::math::{Float, max, sum};
use super::parallel::{Pool, blocks};
use super::stored::{Stored, with_stored};
use super::strips::add;
use super::vectorized::vectorized;
use super::with_float;
use crate::backend::{Destination, Reduction};
use crate::{Element, Result, Tensor};

/// Elements summed in one run before the partial sums are added.
const RUN: usize = 1024;
/// Rows of a block of column sums.
const ROWS: usize = 64;

vectorized! {
    fn run<'a, F>(isa: I, op: Reduction, x: &'a [F]) -> F {
        match op {
            Reduction::Sum => pairwise(x, &|x: &[F]| sum(isa, x)),
            Reduction::Max => max(isa, x),
        }
    }
}

/// Halves long slices at multiples of [`RUN`].
fn pairwise<F: Float>(x: &[F], leaf: &impl Fn(&[F]) -> F) -> F {
    if x.len() <= RUN {
        return leaf(x);
    }
    let middle = (x.len().div_ceil(RUN) / 2) * RUN;
    pairwise(&x[..middle], leaf) + pairwise(&x[middle..], leaf)
}

vectorized! {
    /// Folds rows of `out.len()` values that follow each other into `out`.
    fn fold_rows<'a, F, S>(isa: I, op: Reduction, out: &'a mut [F], rows: &'a [S]) -> () {
        for x in rows.chunks_exact(out.len().max(1)) {
            match op {
                Reduction::Sum => add(isa, out, x),
                Reduction::Max => out.iter_mut().zip(x).for_each(|(out, x)| *out = F::max(*out, x.wide())),
            }
        }
    }
}

/// Adds rows of `sums.len()` values that follow each other to `sums`, in order.
pub(super) fn add_rows<F: Float>(sums: &mut [F], rows: &[F]) {
    fold_rows::<F, F>(Reduction::Sum, sums, rows);
}

fn start<F: Float>(op: Reduction) -> F {
    match op {
        Reduction::Sum => F::ZERO,
        Reduction::Max => F::NEG_INFINITY,
    }
}

/// `out (+)= op of x` over the dimensions in which `out` has size 1 and `x` does not.
pub(super) fn reduce(pool: &Pool, out: Destination, op: Reduction, x: &Tensor) -> Result<()> {
    let (o, shape) = (out.tensor, x.shape());
    let reduced: Vec<bool> = (0..x.rank()).map(|d| o.dim(d) == 1 && shape[d] != 1).collect();
    let kept = reduced.iter().rposition(|r| !r).map_or(0, |d| d + 1);
    let trailing = (0..x.rank()).all(|d| reduced[d] == (d >= kept) || shape[d] == 1);
    let first_kept = (0..x.rank()).find(|&d| !reduced[d] && shape[d] != 1).unwrap_or(x.rank());
    let leading = (0..x.rank()).all(|d| reduced[d] == (d < first_kept) || shape[d] == 1);
    let count: usize = (0..x.rank()).filter(|&d| reduced[d]).map(|d| shape[d]).product();
    let trailing = trailing || !reduced.contains(&true);
    if !trailing && !leading {
        let mut order: Vec<usize> = (0..x.rank()).filter(|&d| !reduced[d]).collect();
        order.extend((0..x.rank()).filter(|&d| reduced[d]));
        let moved = x.permute(&order)?.contiguous()?.reshape(&[o.len(), count])?;
        return with_float!("reduce", x.dtype(), F => over_last::<F>(pool, out, op, &moved, o.len(), count));
    }
    let x = x.contiguous()?;
    with_float!("reduce", x.dtype(), F => match trailing {
        true => over_last::<F>(pool, out, op, &x, o.len(), count),
        false => with_stored!(x.dtype(), F, S => over_first::<F, S>(pool, out, op, &x, count, o.len())),
    })
}

/// Writes or adds `values` to the output in row-major order.
fn store<F: Float + Element>(access: &Access, out: Destination, values: &[F]) -> Result<()> {
    let view = access.destination::<F>(out)?;
    for (i, &value) in values.iter().enumerate() {
        // SAFETY: inside the view's span, locked for writing; one thread.
        unsafe {
            let place = view.at(view.layout().offset_of(i));
            *place = if out.accumulate { *place + value } else { value };
        }
    }
    Ok(())
}

fn over_last<F: Float + Element>(
    pool: &Pool,
    out: Destination,
    op: Reduction,
    x: &Tensor,
    n: usize,
    count: usize,
) -> Result<()> {
    let access = Access::converting(pool, "reduce", &[x], &[out.tensor])?;
    let x = access.view::<F>(x)?.slice();
    let mut results = vec![start::<F>(op); n];
    if count > 0 && n == 1 {
        // One long run: blocks of fixed size, combined in order.
        let block = 64 * RUN;
        let mut partial = vec![start::<F>(op); count.div_ceil(block)];
        each_mut(pool, &mut partial, 1, |i, p| p[0] = run(op, &x[i * block..((i + 1) * block).min(count)]));
        results[0] = run(op, &partial);
    } else if count > 0 {
        let (_, per_block) = blocks(n, count);
        each_mut(pool, &mut results, per_block, |b, part| {
            for (i, r) in part.iter_mut().enumerate() {
                let row = b * per_block + i;
                *r = run(op, &x[row * count..(row + 1) * count]);
            }
        });
    }
    store(&access, out, &results)
}

fn over_first<F: Float + Element, S: Stored<F> + Element>(
    pool: &Pool,
    out: Destination,
    op: Reduction,
    x: &Tensor,
    count: usize,
    n: usize,
) -> Result<()> {
    let access = Access::converting(pool, "reduce", &[x], &[out.tensor])?;
    let x = access.view::<S>(x)?.slice();
    let mut partial = vec![start::<F>(op); count.div_ceil(ROWS).max(1) * n];
    each_mut(pool, &mut partial, n.max(1), |b, part| {
        fold_rows::<F, S>(op, part, &x[b * ROWS * n..count.min((b + 1) * ROWS) * n]);
    });
    let (first, rest) = partial.split_at_mut(n);
    fold_rows::<F, F>(op, first, rest);
    store(&access, out, first)
}

/// Runs `body(i, chunk i)` over the chunks of a slice on the pool.
pub(super) fn each_mut<T: Send>(pool: &Pool, data: &mut [T], chunk: usize, body: impl Fn(usize, &mut [T]) + Sync) {
    struct Shared<T>(*mut T);
    // SAFETY: chunks are disjoint and each is handed to one task.
    unsafe impl<T: Send> Sync for Shared<T> {}
    let (n, shared) = (data.len(), Shared(data.as_mut_ptr()));
    let shared = &shared;
    pool.run(n.div_ceil(chunk.max(1)), |i| {
        let start = i * chunk;
        // SAFETY: inside `data`, which is borrowed for the whole run; chunks are disjoint.
        body(i, unsafe { std::slice::from_raw_parts_mut(shared.0.add(start), chunk.min(n - start)) })
    });
}
