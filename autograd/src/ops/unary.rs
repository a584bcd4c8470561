//! Element-wise functions of one argument, y = f(x), with the gradient `d_x = d_y * f'(x)`:
//!
//! | f | neg | exp | log | sqrt | tanh | sigmoid | square | recip | affine |
//! | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
//! | f' | -1 | y | 1/x | 1/(2y) | 1 - y^2 | y (1 - y) | 2x | -y^2 | mul |

use patchgpt_tensor::{Binary, Tensor, Unary};

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct Elementwise(Unary);

impl Function for Elementwise {
    fn name(&self) -> &'static str {
        match self.0 {
            Unary::Neg => "neg",
            Unary::Exp => "exp",
            Unary::Log => "log",
            Unary::Sqrt => "sqrt",
            Unary::Tanh => "tanh",
            Unary::Sigmoid => "sigmoid",
            Unary::Square => "square",
            Unary::Recip => "recip",
            Unary::Affine { .. } => "affine",
        }
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let x = inputs[0];
        let y = x.unary(self.0)?;
        match self.0 {
            Unary::Neg | Unary::Affine { .. } => {}
            Unary::Log | Unary::Square => context.save(x),
            Unary::Exp | Unary::Sqrt | Unary::Tanh | Unary::Sigmoid | Unary::Recip => context.save(&y),
        }
        Ok(vec![y])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_y = saved.d_out(d_outputs)?;
        match self.0 {
            Unary::Neg => return d_inputs.add(0, d_y.unary(Unary::Neg)?),
            Unary::Affine { mul: 1.0, .. } => return d_inputs.add(0, d_y.clone()),
            Unary::Affine { mul, .. } => return d_inputs.add(0, d_y.affine(mul, 0.0)?),
            _ => {}
        }
        // The function's output, or its input for log and square.
        let s = saved.get(0)?;
        let (op, factor) = match self.0 {
            Unary::Exp => (Binary::Mul, s.clone()),
            Unary::Log => (Binary::Div, s.clone()),
            Unary::Sqrt => (Binary::Div, s.affine(2.0, 0.0)?),
            Unary::Square => (Binary::Mul, s.affine(2.0, 0.0)?),
            Unary::Tanh => {
                let slope = s.unary(Unary::Square)?;
                slope.unary_(Unary::Affine { mul: -1.0, add: 1.0 })?;
                (Binary::Mul, slope)
            }
            Unary::Sigmoid => {
                let slope = s.affine(-1.0, 1.0)?;
                slope.mul_(s)?;
                (Binary::Mul, slope)
            }
            _ => {
                let slope = s.unary(Unary::Square)?;
                slope.unary_(Unary::Neg)?;
                (Binary::Mul, slope)
            }
        };
        d_inputs.write(0, |d_x| d_y.binary_into(op, &factor, d_x))
    }
}

impl Var {
    fn unary(&self, op: Unary) -> Result<Var> {
        apply_one(Elementwise(op), &[self])
    }

    /// `-x`
    pub fn neg(&self) -> Result<Var> {
        self.unary(Unary::Neg)
    }

    /// `e^x`
    pub fn exp(&self) -> Result<Var> {
        self.unary(Unary::Exp)
    }

    /// `ln x`
    pub fn log(&self) -> Result<Var> {
        self.unary(Unary::Log)
    }

    /// `sqrt x`
    pub fn sqrt(&self) -> Result<Var> {
        self.unary(Unary::Sqrt)
    }

    /// `tanh x`
    pub fn tanh(&self) -> Result<Var> {
        self.unary(Unary::Tanh)
    }

    /// `1 / (1 + e^-x)`
    pub fn sigmoid(&self) -> Result<Var> {
        self.unary(Unary::Sigmoid)
    }

    /// `x^2`
    pub fn square(&self) -> Result<Var> {
        self.unary(Unary::Square)
    }

    /// `1 / x`
    pub fn recip(&self) -> Result<Var> {
        self.unary(Unary::Recip)
    }

    /// `x * mul + add` with constants.
    pub fn affine(&self, mul: f64, add: f64) -> Result<Var> {
        self.unary(Unary::Affine { mul, add })
    }
}
