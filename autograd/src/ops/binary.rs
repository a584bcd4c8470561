//! Element-wise arithmetic, y = a op b, with broadcasting; gradients are summed over the broadcast dimensions.
//!
//! | op | d_a | d_b |
//! | --- | --- | --- |
//! | add | d_y | d_y |
//! | sub | d_y | -d_y |
//! | mul | d_y b | d_y a |
//! | div | d_y / b | -d_y y / b |

use patchgpt_tensor::{Binary, Tensor, Unary};

use crate::function::{Made, apply_one};
use crate::{Context, Function, Gradients, Result, Saved, Var};

/// With the sum, where it has been made along with something else.
struct Add(Made<Tensor>);
struct Sub;
struct Mul;
struct Div;

/// Gives input `i` the gradient `op(d_y, factor)`, computed in place if nothing was broadcast.
fn write(d_inputs: &mut Gradients, i: usize, op: Binary, d_y: &Tensor, factor: &Tensor) -> Result<()> {
    if d_inputs.shape(i) == d_y.shape() {
        d_inputs.write(i, |d| d_y.binary_into(op, factor, d))
    } else {
        d_inputs.add_reduced(i, &d_y.binary(op, factor)?)
    }
}

impl Function for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![self.0.or_else(|| inputs[0].add(inputs[1]))?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        d_inputs.add_reduced(0, d_y)?;
        d_inputs.add_reduced(1, d_y)
    }
}

impl Function for Sub {
    fn name(&self) -> &'static str {
        "sub"
    }

    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].sub(inputs[1])?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        d_inputs.add_reduced(0, d_y)?;
        match d_inputs.wanted(1) {
            true => d_inputs.add_reduced(1, &d_y.unary(Unary::Neg)?),
            false => Ok(()),
        }
    }
}

impl Function for Mul {
    fn name(&self) -> &'static str {
        "mul"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        context.save_if(context.needs_gradient(1), inputs[0]);
        context.save_if(context.needs_gradient(0), inputs[1]);
        Ok(vec![inputs[0].mul(inputs[1])?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        for (i, other) in [(0, 1), (1, 0)] {
            if d_inputs.wanted(i) {
                write(d_inputs, i, Binary::Mul, d_y, saved.get(other)?)?;
            }
        }
        Ok(())
    }
}

impl Function for Div {
    fn name(&self) -> &'static str {
        "div"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let y = inputs[0].div(inputs[1])?;
        context.save(inputs[1]);
        context.save_if(context.needs_gradient(1), &y);
        Ok(vec![y])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let (d_y, b) = (saved.d_out(d_outputs)?, saved.get(0)?);
        if d_inputs.wanted(0) {
            write(d_inputs, 0, Binary::Div, d_y, b)?;
        }
        if d_inputs.wanted(1) {
            let product = d_y.mul(saved.get(1)?)?;
            product.unary_(Unary::Neg)?;
            write(d_inputs, 1, Binary::Div, &product, b)?;
        }
        Ok(())
    }
}

/// `a + b` of equal shapes, already computed.
pub(super) fn added(a: &Var, b: &Var, sum: Tensor) -> Result<Var> {
    apply_one(Add(Made::new(sum)), &[a, b])
}

impl Var {
    /// `self + other`, broadcasting
    pub fn add(&self, other: &Var) -> Result<Var> {
        apply_one(Add(Made::default()), &[self, other])
    }

    /// `self - other`, broadcasting
    pub fn sub(&self, other: &Var) -> Result<Var> {
        apply_one(Sub, &[self, other])
    }

    /// `self * other`, element by element, broadcasting
    pub fn mul(&self, other: &Var) -> Result<Var> {
        apply_one(Mul, &[self, other])
    }

    /// `self / other`, element by element, broadcasting
    pub fn div(&self, other: &Var) -> Result<Var> {
        apply_one(Div, &[self, other])
    }
}
