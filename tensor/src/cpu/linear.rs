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
