//! Linear layers: `out = x weight^T + bias`, x [N, I], weight [O, I], bias [O], out [N, O], and GELU of that. The bias is what the product begins
//! with, so that it costs no pass of its own. 2 N I O FLOPs.

use super::access::Access;
use super::gelu::gelu;
use super::gemm::{Matrix, Product, gemm_batched};
use super::math::Float;
use super::matmul::{input, matrix, output};
use super::parallel::Pool;
use super::with_float;
use crate::backend::Linear;
use crate::{Element, Layout, Result};

pub(super) fn linear(pool: &Pool, args: Linear) -> Result<()> {
    with_float!("linear", args.out.dtype(), F => product::<F>(pool, args))?;
    match args.activated {
        Some(activated) => gelu(pool, activated, args.out),
        None => Ok(()),
    }
}

fn product<F: Float + Element>(pool: &Pool, Linear { out, x, weight, bias, .. }: Linear) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let inputs: Vec<_> = [Some(x), Some(weight), bias].into_iter().flatten().collect();
    let access = Access::new("linear", &inputs, &[out])?;
    let [n, i, o] = [out.dim(0), x.dim(1), out.dim(1)];
    let strides = |layout: &Layout| [layout.strides()[0], layout.strides()[1]];
    let [w_row, w_col] = strides(weight.layout());
    let addend = bias.map(|bias| -> Result<Matrix<F>> {
        // One row, for every row of the output.
        Ok(matrix(input(&access, bias)?, n, o, [0, bias.layout().strides()[0]]))
    });
    let product = Product {
        out: matrix(output::<F>(&access, out)?, n, o, strides(out.layout())),
        a: matrix(input(&access, x)?, n, i, strides(x.layout())),
        b: matrix(input(&access, weight)?, i, o, [w_col, w_row]),
        addend: addend.transpose()?,
    };
    // SAFETY: the matrices lie within their views, which the access has locked; out overlaps no input (the access refuses it).
    unsafe { gemm_batched(pool, 1, |_| product, F::ONE) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::stream::is_large;
    use crate::{DType, Device, Distribution, Result, Tensor};

    /// Rows of so many bytes, more than are written through the caches.
    fn rows_of_a_large_output(row: usize) -> usize {
        (0..).map(|i| 500 + i * 500).find(|rows| is_large(rows * row)).expect("some size is large") + 7
    }

    #[test]
    #[cfg_attr(miri, ignore = "large")]
    fn an_output_that_goes_past_the_caches_has_the_bits_of_its_parts() -> Result<()> {
        let device = Device::cpu_with_threads(2)?;
        let random = |shape: &[usize], seed, dtype| {
            let normal = Distribution::Normal { mean: 0.0, std: 1.0 };
            Tensor::random(shape, normal, seed, 0, DType::F32, &device)?.cast(dtype)
        };
        // The second has a ragged last tile in every row, and rows that begin anywhere in a line.
        for (dtype, outputs) in [(DType::F32, 1056), (DType::F32, 1001), (DType::BF16, 1056)] {
            let rows = rows_of_a_large_output(outputs * dtype.size());
            let (x, weight) = (random(&[rows, 8], 1, dtype)?, random(&[outputs, 8], 2, dtype)?);
            let some = random(&[outputs], 3, dtype)?;
            for bias in [None, Some(&some)] {
                let whole = x.linear(&weight, bias)?;
                for start in (0..rows).step_by(500) {
                    let length = 500.min(rows - start);
                    let part = x.narrow(0, start, length)?.linear(&weight, bias)?;
                    let [found, expected] =
                        [&whole.narrow(0, start, length)?, &part].map(|rows| rows.cast(DType::F32)?.to_vec::<f32>());
                    assert!(found? == expected?, "{dtype:?}, rows from {start} on, bias {}", bias.is_some());
                }
            }
        }
        Ok(())
    }
}
