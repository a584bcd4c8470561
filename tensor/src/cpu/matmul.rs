//! Batched matrix products: `out (+)= alpha * a b`, a [.., m, k], b [.., k, n], out [.., m, n], any strides.
//!
//! Leading dimensions over which one factor is shared fold into the rows of a (or the columns of b) where strides allow, so that
//! a [B, T, C] activation times a [C, F] weight is one product of B*T rows; those that are left run as a batch, whose
//! tiles are spread over the threads together. 2 m k n FLOPs a product.

use super::access::Access;
use super::gemm::{Matrix, Product, Values, gemm_batched};
use super::math::Float;
use super::parallel::Pool;
use super::with_float;
use crate::backend::Destination;
use crate::{DType, Element, Error, Layout, Result, Tensor};
use half::bf16;

pub(super) fn matmul(pool: &Pool, out: Destination, a: &Tensor, b: &Tensor, alpha: f64) -> Result<()> {
    with_float!("matmul", out.tensor.dtype(), F => product::<F>(pool, out, a, b, alpha))
}

/// One leading dimension: its size and the steps of out, a and b along it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Leading {
    size: usize,
    out: usize,
    a: usize,
    b: usize,
}

/// A batch of equal products: sizes, (row, column) strides of each matrix, and the dimensions they are repeated over.
#[derive(Debug)]
struct Plan {
    m: usize,
    k: usize,
    n: usize,
    out: [usize; 2],
    a: [usize; 2],
    b: [usize; 2],
    leading: Vec<Leading>,
}

impl Plan {
    /// The product of whole layouts, with as much of the leading dimensions folded into m and n as strides allow.
    fn new(out: &Layout, a: &Layout, b: &Layout) -> Plan {
        let rank = out.rank();
        let last = |l: &Layout| [l.strides()[rank - 2], l.strides()[rank - 1]];
        let leading = (0..rank - 2)
            .filter(|&d| out.shape()[d] > 1)
            .map(|d| Leading { size: out.shape()[d], out: out.strides()[d], a: a.strides()[d], b: b.strides()[d] })
            .collect();
        let mut plan = Plan {
            m: out.shape()[rank - 2],
            k: a.shape()[rank - 1],
            n: out.shape()[rank - 1],
            out: last(out),
            a: last(a),
            b: last(b),
            leading,
        };
        while plan.fold() {}
        plan
    }

    /// Folds one leading dimension into m or n; whether there was one that could be.
    fn fold(&mut self) -> bool {
        for (i, dim) in self.leading.iter().enumerate().rev() {
            // A single row has no neighbours: any step can become its row stride.
            let follows = |step: usize, stride: usize, size: usize| size == 1 || step == stride * size;
            if dim.b == 0 && follows(dim.a, self.a[0], self.m) && follows(dim.out, self.out[0], self.m) {
                if self.m == 1 {
                    (self.a[0], self.out[0]) = (dim.a, dim.out);
                }
                self.m *= dim.size;
            } else if dim.a == 0 && follows(dim.b, self.b[1], self.n) && follows(dim.out, self.out[1], self.n) {
                if self.n == 1 {
                    (self.b[1], self.out[1]) = (dim.b, dim.out);
                }
                self.n *= dim.size;
            } else {
                continue;
            }
            self.leading.remove(i);
            return true;
        }
        false
    }

    /// How many products there are.
    fn batch(&self) -> usize {
        self.leading.iter().map(|d| d.size).product()
    }

    /// Offsets of out, a and b of product number `index`, from those of the first.
    fn offsets(&self, mut index: usize) -> [usize; 3] {
        let mut offsets = [0; 3];
        for dim in self.leading.iter().rev() {
            let i = index % dim.size;
            index /= dim.size;
            for (offset, step) in offsets.iter_mut().zip([dim.out, dim.a, dim.b]) {
                *offset += i * step;
            }
        }
        offsets
    }
}

fn product<F: Float + Element>(pool: &Pool, out: Destination, a: &Tensor, b: &Tensor, alpha: f64) -> Result<()> {
    let Destination { tensor: out, accumulate } = out;
    if out.is_empty() {
        return Ok(());
    }
    let access = Access::new("matmul", &[a, b], &[out])?;
    let plan = Plan::new(out.layout(), a.layout(), b.layout());
    let factor = |x: &Tensor, rows, cols, strides| Ok::<_, Error>(matrix(input::<F>(&access, x)?, rows, cols, strides));
    let to = matrix(output::<F>(&access, out)?, plan.m, plan.n, plan.out);
    let (a, b) = (factor(a, plan.m, plan.k, plan.a)?, factor(b, plan.k, plan.n, plan.b)?);
    let item = |index: usize| {
        let [out_offset, a_offset, b_offset] = plan.offsets(index);
        let out = to.offset(out_offset);
        let addend = accumulate.then_some(out);
        Product { out, a: a.offset(a_offset), b: b.offset(b_offset), addend }
    };
    // SAFETY: the matrices lie within their views, which the access has locked; out overlaps neither input (the access
    // refuses it) nor itself (the contract), so that the batch's outputs are disjoint.
    unsafe { gemm_batched(pool, plan.batch(), item, F::from_f64(alpha)) };
    Ok(())
}

/// A matrix of these sizes and strides.
pub(super) fn matrix<F>(values: Values<F>, rows: usize, cols: usize, [row, col]: [usize; 2]) -> Matrix<F> {
    Matrix { values, rows, cols, row_stride: row as isize, col_stride: col as isize }
}

/// The first element of an input, in the type in which it is stored: F, or bf16 where that is f32.
pub(super) fn input<F: Float + Element>(access: &Access, x: &Tensor) -> Result<Values<F>> {
    let offset = x.layout().offset();
    Ok(if is_narrow::<F>(x) {
        Values::Bf16(access.view::<bf16>(x)?.at(offset).cast_mut())
    } else {
        Values::Wide(access.view::<F>(x)?.at(offset).cast_mut())
    })
}

/// The first element of the output.
pub(super) fn output<F: Float + Element>(access: &Access, out: &Tensor) -> Result<Values<F>> {
    let offset = out.layout().offset();
    Ok(if is_narrow::<F>(out) {
        Values::Bf16(access.view_mut::<bf16>(out)?.at(offset))
    } else {
        Values::Wide(access.view_mut::<F>(out)?.at(offset))
    })
}

fn is_narrow<F: Element>(x: &Tensor) -> bool {
    x.dtype() == DType::BF16 && F::DTYPE == DType::F32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    /// Values that differ from place to place, of magnitude about 1.
    fn values(len: usize, seed: usize) -> Vec<f64> {
        (0..len).map(|i| ((i * 37 + seed * 101) % 64) as f64 / 32.0 - 1.0).collect()
    }

    fn tensor(shape: &[usize], seed: usize, device: &Device) -> Tensor {
        let len = shape.iter().product();
        Tensor::from_slice(&values(len, seed), shape, device).expect("a tensor")
    }

    /// `out + alpha a b` by index loops over views.
    fn expected(out: &Tensor, a: &Tensor, b: &Tensor, alpha: f64, accumulate: bool) -> Vec<f64> {
        let (x, y, old) = (flat(a), flat(b), flat(out));
        let rank = out.rank();
        let (m, n, k) = (out.dim(rank - 2), out.dim(rank - 1), a.dim(rank - 1));
        (0..out.len())
            .map(|at| {
                let (batch, i, j) = (at / (m * n), at / n % m, at % n);
                let sum: f64 = (0..k).map(|p| x[(batch * m + i) * k + p] * y[(batch * k + p) * n + j]).sum();
                alpha * sum + if accumulate { old[at] } else { 0.0 }
            })
            .collect()
    }

    /// The elements of a view in row-major order.
    fn flat(x: &Tensor) -> Vec<f64> {
        let access = Access::new("test", &[x], &[]).expect("readable");
        let view = access.view::<f64>(x).expect("f64");
        // SAFETY: the offsets lie inside the view.
        (0..x.len()).map(|i| unsafe { *view.at(x.layout().offset_of(i)) }).collect()
    }

    fn check(out: &Tensor, a: &Tensor, b: &Tensor, threads: usize) {
        let pool = Pool::new(threads).expect("threads");
        for (alpha, accumulate) in [(1.0, false), (-0.5, true)] {
            let want = expected(out, a, b, alpha, accumulate);
            matmul(&pool, Destination { tensor: out, accumulate }, a, b, alpha).expect("a product");
            for (got, want) in flat(out).iter().zip(&want) {
                assert!((got - want).abs() <= 1e-10, "{:?} x {:?}: {got} {want}", a.layout(), b.layout());
            }
        }
    }

    #[test]
    fn batches_views_and_shared_factors() {
        let device = Device::cpu_with_threads(1).expect("a device");
        for threads in [1, 3] {
            let a = tensor(&[2, 3, 5, 7], 1, &device);
            let b = tensor(&[2, 3, 7, 4], 2, &device);
            check(&tensor(&[2, 3, 5, 4], 3, &device), &a, &b, threads);
            // Both factors and the output transposed.
            let out = tensor(&[3, 2, 4, 5], 3, &device).permute(&[1, 0, 3, 2]).expect("a view");
            let a = tensor(&[3, 7, 2, 5], 1, &device).permute(&[2, 0, 3, 1]).expect("a view");
            let b = tensor(&[4, 2, 7, 3], 2, &device).permute(&[1, 3, 2, 0]).expect("a view");
            check(&out, &a, &b, threads);
            // One weight for all, and one activation for all.
            let shared = tensor(&[7, 4], 4, &device).broadcast_to(&[2, 3, 7, 4]).expect("a view");
            check(&tensor(&[2, 3, 5, 4], 3, &device), &tensor(&[2, 3, 5, 7], 1, &device), &shared, threads);
            let shared = tensor(&[5, 7], 4, &device).broadcast_to(&[2, 3, 5, 7]).expect("a view");
            check(&tensor(&[2, 3, 5, 4], 3, &device), &shared, &tensor(&[2, 3, 7, 4], 1, &device), threads);
            // Columns of a wider matrix, a single row, nothing to sum over.
            let wide = tensor(&[6, 20], 5, &device).narrow(1, 3, 7).expect("a view");
            check(
                &tensor(&[6, 9], 3, &device).narrow(1, 2, 4).expect("a view"),
                &wide,
                &tensor(&[7, 4], 6, &device),
                threads,
            );
            check(&tensor(&[1, 4], 3, &device), &tensor(&[1, 7], 1, &device), &tensor(&[7, 4], 6, &device), threads);
            check(&tensor(&[3, 4], 3, &device), &tensor(&[3, 0], 1, &device), &tensor(&[0, 4], 6, &device), threads);
            check(&tensor(&[0, 4], 3, &device), &tensor(&[0, 7], 1, &device), &tensor(&[7, 4], 6, &device), threads);
        }
    }

    #[test]
    fn leading_dimensions_fold_where_a_factor_is_shared() {
        let layout = |shape: &[usize]| Layout::contiguous(shape).expect("a layout");
        let weight = layout(&[7, 4]).broadcast_to(&[2, 3, 7, 4]).expect("a view");
        let plan = Plan::new(&layout(&[2, 3, 5, 4]), &layout(&[2, 3, 5, 7]), &weight);
        assert_eq!((plan.m, plan.n, plan.batch()), (30, 4, 1));
        // Heads between rows: only what is adjacent folds.
        let rows = layout(&[2, 5, 3, 7]).permute(&[0, 2, 1, 3]).expect("a view");
        let plan = Plan::new(&layout(&[2, 3, 5, 4]), &rows, &weight);
        assert_eq!((plan.m, plan.batch()), (5, 6));
        // A single row takes the leading stride as its own.
        let plan = Plan::new(
            &layout(&[6, 1, 4]),
            &layout(&[6, 1, 7]),
            &layout(&[7, 4]).broadcast_to(&[6, 7, 4]).expect("a view"),
        );
        assert_eq!((plan.m, plan.a[0], plan.out[0], plan.batch()), (6, 7, 4, 1));
        // Own factors do not fold.
        let plan = Plan::new(&layout(&[2, 3, 5, 4]), &layout(&[2, 3, 5, 7]), &layout(&[2, 3, 7, 4]));
        assert_eq!((plan.m, plan.n, plan.batch()), (5, 4, 6));
        // Nor where the columns of all products lie side by side, unless the left factor is shared.
        let columns = |rows| layout(&[rows, 6, 4]).permute(&[1, 0, 2]).expect("a view");
        let plan = Plan::new(&columns(5), &layout(&[6, 5, 7]), &columns(7));
        assert_eq!((plan.n, plan.batch()), (4, 6));
        let plan = Plan::new(&columns(5), &layout(&[5, 7]).broadcast_to(&[6, 5, 7]).expect("a view"), &columns(7));
        assert_eq!((plan.n, plan.batch()), (24, 1));
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let device = Device::cpu_with_threads(1).expect("a device");
        let (a, b) = (tensor(&[3, 130, 70], 1, &device), tensor(&[3, 70, 90], 2, &device));
        let results = [1, 2, 3, 7].map(|threads| {
            let out = tensor(&[3, 130, 90], 3, &device);
            let pool = Pool::new(threads).expect("threads");
            matmul(&pool, Destination::add(&out), &a, &b, 0.3).expect("a product");
            flat(&out)
        });
        assert!(results.iter().all(|r| r.iter().zip(&results[0]).all(|(x, y)| x.to_bits() == y.to_bits())));
    }
}
