//! Central differences with the realised step, at h and h/2, extrapolated (Richardson).
//!
//! `D(h) = sum_i c_i (y_i(x+) - y_i(x-)) / (x+ - x-)` with x+ and x- as rounded; `D = (4 D(h/2) - D(h)) / 3`, whose error is that of
//! order h^4, estimated from above by `|D(h/2) - D(h)| / 3` plus the rounding of y.

use std::cell::Cell;

use patchgpt_tensor::{DType, Device, Tensor};

use super::index_of;
use super::report::Comparison;
use crate::{Error, Result, Var, no_grad};

/// A gradient along one direction or element, by backward and by differences.
#[derive(Clone, Copy, Debug)]
pub(super) struct Difference {
    /// Row-major number of the element; `None` for a direction.
    pub(super) index: Option<usize>,
    pub(super) analytic: f64,
    pub(super) numeric: f64,
    pub(super) step: f64,
    pub(super) uncertainty: f64,
    /// What brings the errors into the units of the scale: 1, or how far an element moves that is named in place of a direction.
    pub(super) unit: f64,
}

impl Difference {
    pub(super) fn error(&self) -> f64 {
        match self.analytic.is_finite() && self.numeric.is_finite() {
            true => (self.analytic - self.numeric).abs(),
            false => f64::NAN,
        }
    }

    pub(super) fn comparison(&self, shape: &[usize]) -> Comparison {
        let index = self.index.map(|element| index_of(shape, element));
        Comparison {
            index,
            analytic: self.analytic,
            numeric: self.numeric,
            step: self.step,
            uncertainty: self.uncertainty,
        }
    }
}

/// An element and how far it moves at step 1.
#[derive(Clone, Copy)]
pub(super) struct Move {
    pub(super) index: usize,
    pub(super) by: f64,
}

/// The function under test as a function of host numbers.
pub(super) struct Problem<'a, F> {
    pub(super) function: &'a F,
    pub(super) inputs: Vec<Tensor>,
    pub(super) values: Vec<Vec<f64>>,
    pub(super) cotangent: Vec<f64>,
    pub(super) evaluations: Cell<usize>,
}

/// One pair of evaluations: the slope, what backward predicts for it, and the rounding error of the slope.
struct Slope {
    numeric: f64,
    analytic: f64,
    rounding: f64,
}

impl<F: Fn(&[Var]) -> Result<Var>> Problem<'_, F> {
    fn device(&self) -> &Device {
        self.inputs[0].device()
    }

    /// The output's elements, computed without recording from contiguous inputs, with input `i` replaced.
    pub(super) fn evaluate(&self, replaced: Option<(usize, &[f64])>) -> Result<Vec<f64>> {
        self.evaluations.set(self.evaluations.get() + 1);
        let mut vars: Vec<Var> = self.inputs.iter().cloned().map(Var::constant).collect();
        if let Some((i, values)) = replaced {
            vars[i] = Var::constant(Tensor::from_slice(values, self.inputs[i].shape(), self.device())?);
        }
        let y = no_grad(|| (self.function)(&vars))?;
        if y.dtype() != DType::F64 {
            return Err(Error::value("gradcheck", format!("an f64 output expected, got {}", y.dtype())));
        }
        Ok(y.tensor().to_vec()?)
    }

    /// Compares along `moves` of one input, whose gradient by backward is `gradient`.
    pub(super) fn difference(&self, input: usize, moves: &[Move], gradient: &[f64], step: f64) -> Result<Difference> {
        let coarse = self.slope(input, moves, gradient, step)?;
        let fine = self.slope(input, moves, gradient, step / 2.0)?;
        let extrapolate = |fine: f64, coarse: f64| fine + (fine - coarse) / 3.0;
        let change = (fine.numeric - fine.analytic) - (coarse.numeric - coarse.analytic);
        let single = match moves {
            [only] => Some(only),
            _ => None,
        };
        Ok(Difference {
            index: single.map(|m| m.index),
            analytic: extrapolate(fine.analytic, coarse.analytic),
            numeric: extrapolate(fine.numeric, coarse.numeric),
            step: single.map_or(step, |m| step * m.by.abs()),
            uncertainty: change.abs() / 3.0 + 2.0 * fine.rounding,
            unit: 1.0,
        })
    }

    fn slope(&self, input: usize, moves: &[Move], gradient: &[f64], step: f64) -> Result<Slope> {
        let (mut up, mut down) = (self.values[input].clone(), self.values[input].clone());
        let (mut width, mut predicted) = (2.0 * step, 0.0);
        for m in moves {
            up[m.index] += step * m.by;
            down[m.index] -= step * m.by;
            let realised = up[m.index] - down[m.index];
            predicted += gradient[m.index] * realised;
            if moves.len() == 1 {
                width = realised;
            }
        }
        let (y_up, y_down) = (self.evaluate(Some((input, &up)))?, self.evaluate(Some((input, &down)))?);
        if y_up.len() != self.cotangent.len() || y_down.len() != self.cotangent.len() {
            return Err(Error::value("gradcheck", "the output's shape must not depend on the input's values"));
        }
        let (mut rise, mut rounding) = (Sum::default(), 0.0);
        for ((c, a), b) in self.cotangent.iter().zip(&y_up).zip(&y_down) {
            rise.add(c * (a - b));
            rounding += c.abs() * (a.abs() + b.abs()) * f64::EPSILON;
        }
        Ok(Slope { numeric: rise.value() / width, analytic: predicted / width, rounding: rounding / width.abs() })
    }

    /// The element that contributes most to the error along `moves`, found by halving; its unit is how far it moves.
    pub(super) fn localise(&self, input: usize, moves: &[Move], gradient: &[f64], step: f64) -> Result<Difference> {
        let mut range = moves;
        while range.len() > 1 {
            let (left, right) = range.split_at(range.len() / 2);
            let l = self.difference(input, left, gradient, step)?.error();
            let r = self.difference(input, right, gradient, step)?.error();
            range = if l.is_nan() || l >= r { left } else { right };
        }
        let unit = range.iter().map(|m| m.by.abs()).sum();
        Ok(Difference { unit, ..self.difference(input, range, gradient, step)? })
    }
}

/// A sum that carries its rounding error (Neumaier).
#[derive(Default)]
struct Sum {
    sum: f64,
    lost: f64,
}

impl Sum {
    fn add(&mut self, x: f64) {
        let sum = self.sum + x;
        self.lost += if self.sum.abs() >= x.abs() { (self.sum - sum) + x } else { (x - sum) + self.sum };
        self.sum = sum;
    }

    fn value(&self) -> f64 {
        self.sum + self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::Sum;

    #[test]
    fn a_sum_keeps_what_rounding_takes() {
        for terms in [[1.0, 1e100, 1.0, -1e100], [1e100, 1.0, -1e100, 1.0], [1.0, 1.0, 1e100, -1e100]] {
            let mut sum = Sum::default();
            terms.iter().for_each(|&term| sum.add(term));
            assert_eq!(sum.value(), 2.0, "{terms:?}");
        }
    }
}
