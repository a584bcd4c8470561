//! `out (+)= alpha * a @ b` over NVIDIA's libraries (gemm.rs chooses which): f32 by f32, or bf16 by bf16 into bf16 or f32; sums in f32 (no TF32).
//!
//! They are column-major, and a row-major matrix is the transpose of a column-major one; so `out^T = b^T a^T` is what is asked for. A factor whose
//! strides are neither row- nor column-major is copied first.
//!
//! FLOPs: 2 batch m n k. Bytes: each of a, b and out once.

use patchgpt_tensor::{Backend, DType, Destination, Error, Result, Tensor};

use super::gemm;
use crate::blas::{Factor, Gemm};
use crate::device::Cuda;

/// See [`Backend::matmul`].
pub(crate) fn matmul(cuda: &Cuda, out: Destination, a: &Tensor, b: &Tensor, alpha: f64) -> Result<()> {
    let op = "matmul";
    let supported = matches!(
        (a.dtype(), b.dtype(), out.tensor.dtype()),
        (DType::F32, DType::F32, DType::F32) | (DType::BF16, DType::BF16, DType::BF16 | DType::F32)
    );
    if !supported {
        let expected = "f32 @ f32 into f32, or bf16 @ bf16 into bf16 or f32";
        let got = [a.dtype(), b.dtype(), out.tensor.dtype()];
        return match got.iter().find(|d| !matches!(d, DType::F32 | DType::BF16)) {
            Some(&other) => Err(Error::dtype(op, expected, other)),
            None => Err(Error::value(
                op,
                format!("{expected} expected on this device, got {} @ {} into {}", got[0], got[1], got[2]),
            )),
        };
    }
    if out.tensor.is_empty() {
        return Ok(());
    }
    let rank = out.tensor.rank();
    if a.dim(rank - 1) == 0 {
        return if out.accumulate { Ok(()) } else { cuda.fill(out.tensor, 0.0) };
    }
    let (a, b) = (plain(a)?, plain(b)?);
    if Matrix::of(out.tensor).is_some() {
        return into_plain(cuda, out, &a, &b, alpha);
    }
    // An output with other strides is made beside and brought over.
    let t = out.tensor;
    let fresh = Tensor::empty(t.shape(), t.dtype(), t.device())?;
    if out.accumulate {
        cuda.copy(&fresh, t)?;
    }
    into_plain(cuda, Destination { tensor: &fresh, accumulate: out.accumulate }, &a, &b, alpha)?;
    cuda.copy(t, &fresh)
}

/// The last two dimensions of a tensor as cuBLAS sees memory.
#[derive(Clone, Copy)]
struct Matrix {
    /// Elements from one run of neighbours to the next.
    leading: usize,
    /// Whether rows are the runs; else columns are.
    rows: bool,
}

impl Matrix {
    /// `None` if neither rows nor columns are runs of neighbours, or if runs overlap.
    fn of(t: &Tensor) -> Option<Matrix> {
        let d = t.rank() - 2;
        let (rows, columns) = (t.dim(d), t.dim(d + 1));
        let (row, column) = (t.strides()[d], t.strides()[d + 1]);
        // The stride of a dimension of size 1 says nothing.
        let leading = |count: usize, stride: usize, length: usize| match count {
            1 => Some(length),
            _ => (stride >= length).then_some(stride),
        };
        if (columns == 1 || column == 1)
            && let Some(leading) = leading(rows, row, columns)
        {
            return Some(Matrix { leading, rows: true });
        }
        if (rows == 1 || row == 1)
            && let Some(leading) = leading(columns, column, rows)
        {
            return Some(Matrix { leading, rows: false });
        }
        None
    }
}

/// The tensor if cuBLAS can read it, else a contiguous copy.
pub(super) fn plain(t: &Tensor) -> Result<Tensor> {
    if Matrix::of(t).is_some() { Ok(t.clone()) } else { t.copy() }
}

fn into_plain(cuda: &Cuda, out: Destination, a: &Tensor, b: &Tensor, alpha: f64) -> Result<()> {
    let (product, outer) = product(cuda, out, a, b, alpha)?;
    let moved = |f: Factor, elements: usize| Factor { address: f.address + (elements * f.dtype.size()) as u64, ..f };
    outer.into_iter().try_for_each(|[a, b, c]| {
        gemm::product(cuda, &Gemm { a: moved(product.a, a), b: moved(product.b, b), c: moved(product.c, c), ..product })
    })
}

/// The product as the libraries take it, for tensors that [`plain`] has passed, and the elements by which it is moved for each batch.
pub(super) fn product(
    cuda: &Cuda,
    out: Destination,
    a: &Tensor,
    b: &Tensor,
    alpha: f64,
) -> Result<(Gemm, Vec<[usize; 3]>)> {
    let rank = out.tensor.rank();
    let (m, n, k) = (out.tensor.dim(rank - 2), out.tensor.dim(rank - 1), a.dim(rank - 1));
    let by_rows = Matrix::of(out.tensor).is_some_and(|matrix| matrix.rows);
    // Row-major out: out^T = b^T a^T, and the memory of a row-major factor is already its transpose. Column-major out: out = a b as it stands.
    let (first, second, m, n) = if by_rows { (b, a, n, m) } else { (a, b, m, n) };
    let strides = |t: &Tensor| t.strides()[..rank - 2].to_vec();
    let (batch, outer) =
        batches(&out.tensor.shape()[..rank - 2], [strides(first), strides(second), strides(out.tensor)]);
    let factor = |t: &Tensor, which: usize| -> Result<Factor> {
        let matrix =
            Matrix::of(t).ok_or_else(|| Error::shape("matmul", format!("{:?} is no matrix for cuBLAS", t.layout())))?;
        Ok(Factor {
            address: cuda.address(t)?,
            dtype: t.dtype(),
            transposed: matrix.rows != by_rows,
            leading: matrix.leading,
            stride: batch.strides[which],
        })
    };
    let (a, b, c) = (factor(first, 0)?, factor(second, 1)?, factor(out.tensor, 2)?);
    let beta = if out.accumulate { 1.0 } else { 0.0 };
    Ok((Gemm { m, n, k, a, b, c, alpha: alpha as f32, beta, batch: batch.size }, outer))
}

/// Matrices that one call covers.
struct Batch {
    size: usize,
    strides: [usize; 3],
}

/// Leading dimensions as one batch with constant strides, as long as possible from the right, and the offsets at which it begins.
fn batches(shape: &[usize], strides: [Vec<usize>; 3]) -> (Batch, Vec<[usize; 3]>) {
    let mut batch = Batch { size: 1, strides: [0; 3] };
    let mut rest = shape.len();
    for d in (0..shape.len()).rev().filter(|&d| shape[d] != 1) {
        let here: [usize; 3] = std::array::from_fn(|i| strides[i][d]);
        if batch.size == 1 {
            batch = Batch { size: shape[d], strides: here };
        } else if (0..3).all(|i| here[i] == batch.strides[i] * batch.size) {
            batch.size *= shape[d];
        } else {
            break;
        }
        rest = d;
    }
    let mut offsets = vec![[0; 3]];
    for d in 0..rest {
        if shape[d] == 1 {
            continue;
        }
        offsets = offsets
            .iter()
            .flat_map(|o: &[usize; 3]| {
                (0..shape[d]).map(|i| std::array::from_fn(|t| o[t] + i * strides[t][d])).collect::<Vec<_>>()
            })
            .collect();
    }
    (batch, offsets)
}

#[cfg(test)]
mod tests {
    use super::batches;

    #[test]
    fn leading_dimensions_become_one_batch_where_strides_allow() {
        let (batch, outer) = batches(&[2, 3], [vec![30, 10], vec![0, 0], vec![60, 20]]);
        assert_eq!((batch.size, batch.strides, outer.len()), (6, [10, 0, 20], 1));
        let (batch, outer) = batches(&[2, 3], [vec![30, 10], vec![0, 7], vec![60, 20]]);
        assert_eq!((batch.size, batch.strides), (3, [10, 7, 20]));
        assert_eq!(outer, [[0, 0, 0], [30, 0, 60]]);
        let (batch, outer) = batches(&[], [vec![], vec![], vec![]]);
        assert_eq!((batch.size, outer), (1, vec![[0, 0, 0]]));
    }
}
