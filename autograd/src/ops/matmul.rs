//! Batched matrix product `y = a b`: a [.., m, k], b [.., k, n], y [.., m, n], leading dimensions broadcast.
//!
//! `d_a = d_y b^T`, `d_b = a^T d_y`, summed over broadcast leading dimensions.

use patchgpt_tensor::{Destination, Tensor};

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct Matmul;

/// All but the last two sizes.
fn leading(shape: &[usize]) -> &[usize] {
    &shape[..shape.len().saturating_sub(2)]
}

/// `a^T d_y` for a matrix b that is shared by all of a batch: one product over the joined rows.
fn shared_factor(a: &Tensor, d_y: &Tensor, d_b: Destination) -> patchgpt_tensor::Result<()> {
    let (k, n) = (a.dim(a.rank() - 1), d_y.dim(d_y.rank() - 1));
    let rows = a.shape()[..a.rank() - 1].iter().product();
    let tensor = d_b.tensor.view(&[k, n])?;
    let d_b = Destination { tensor: &tensor, accumulate: d_b.accumulate };
    a.reshape(&[rows, k])?.t()?.matmul_into(&d_y.reshape(&[rows, n])?, 1.0, d_b)
}

impl Function for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        context.save_if(context.needs_gradient(1), inputs[0]);
        context.save_if(context.needs_gradient(0), inputs[1]);
        Ok(vec![inputs[0].matmul(inputs[1])?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        let batch = leading(d_y.shape());
        if d_inputs.wanted(0) {
            let b = saved.get(1)?.t()?;
            if leading(d_inputs.shape(0)) == batch {
                d_inputs.write(0, |d_a| d_y.matmul_into(&b, 1.0, d_a))?;
            } else {
                d_inputs.add_reduced(0, &d_y.matmul(&b)?)?;
            }
        }
        if d_inputs.wanted(1) {
            let a = saved.get(0)?;
            if leading(d_inputs.shape(1)) == batch {
                d_inputs.write(1, |d_b| a.t()?.matmul_into(d_y, 1.0, d_b))?;
            } else if leading(a.shape()) == batch && leading(d_inputs.shape(1)).iter().all(|&size| size == 1) {
                d_inputs.write(1, |d_b| shared_factor(a, d_y, d_b))?;
            } else {
                d_inputs.add_reduced(1, &a.t()?.matmul(d_y)?)?;
            }
        }
        Ok(())
    }
}

impl Var {
    /// `self @ other`: [.., m, k] @ [.., k, n] = [.., m, n]; leading dimensions broadcast.
    pub fn matmul(&self, other: &Var) -> Result<Var> {
        apply_one(Matmul, &[self, other])
    }
}
