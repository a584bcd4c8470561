//! [`Gradients`]: where a function's backward puts the gradients of its inputs.

use patchgpt_tensor::{DType, Destination, Device, Reduction, Tensor};

use crate::backward::Walk;
use crate::graph::Input;
use crate::{Error, Result};

/// The gradients of a function's inputs, to be written by its backward: once each at least, for every wanted input.
pub struct Gradients<'a> {
    op: &'static str,
    inputs: &'a [Input],
    given: Vec<bool>,
    wide: bool,
    walk: &'a mut Walk,
}

/// Memory for one result.
struct Held {
    input: usize,
    tensor: Tensor,
    accumulate: bool,
    /// The caller's own gradient memory, which never leaves its parameter.
    in_place: bool,
}

impl<'a> Gradients<'a> {
    pub(crate) fn new(op: &'static str, inputs: &'a [Input], walk: &'a mut Walk) -> Self {
        Gradients { op, inputs, given: vec![false; inputs.len()], wide: false, walk }
    }

    fn input(&self, i: usize) -> Result<&'a Input> {
        self.inputs.get(i).ok_or(Error::Number { op: self.op, what: "input", number: i, count: self.inputs.len() })
    }

    /// Whether input `i` is tracked, so that its gradient is needed.
    pub fn wanted(&self, i: usize) -> bool {
        self.inputs.get(i).is_some_and(|input| input.edge.is_some())
    }

    /// Shape of input `i` and of its gradient; empty for an input that does not exist.
    pub fn shape(&self, i: usize) -> &'a [usize] {
        self.inputs.get(i).map_or(&[], |input| input.layout.shape())
    }

    /// Dtype of input `i` and of its gradient.
    ///
    /// # Errors
    /// No such input.
    pub fn dtype(&self, i: usize) -> Result<DType> {
        Ok(self.input(i)?.dtype)
    }

    /// Device of input `i` and of its gradient.
    ///
    /// # Errors
    /// No such input.
    pub fn device(&self, i: usize) -> Result<&'a Device> {
        Ok(&self.input(i)?.device)
    }

    /// Uninitialised memory of the shape, dtype and device of input `i`.
    pub fn scratch(&self, i: usize) -> Result<Tensor> {
        let input = self.input(i)?;
        Ok(Tensor::empty(input.layout.shape(), input.dtype, &input.device)?)
    }

    /// Declares that what this backward writes may go into memory of the accumulator's dtype: the gradient of a bf16 parameter that is kept
    /// in f32 is then added to directly, without being rounded to bf16 on the way.
    pub fn wide(&mut self) -> &mut Self {
        self.wide = true;
        self
    }

    /// Lets `f` write the gradient of input `i`, if it is wanted, into a contiguous destination: memory that already holds a part of
    /// the gradient (`accumulate`), such as a parameter's gradient, or fresh memory. Its dtype is the input's unless [`Gradients::wide`] was called.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn write<E: Into<Error>>(
        &mut self,
        i: usize,
        f: impl FnOnce(Destination) -> std::result::Result<(), E>,
    ) -> Result<()> {
        self.write_many([i], |[destination]| match destination {
            Some(destination) => f(destination),
            None => Ok(()),
        })
    }

    /// As [`Gradients::write`] for a kernel that computes the gradients of several inputs at once; `None` for one that is not wanted.
    /// `f` is not called if none is.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn write_many<const N: usize, E: Into<Error>>(
        &mut self,
        inputs: [usize; N],
        f: impl FnOnce([Option<Destination>; N]) -> std::result::Result<(), E>,
    ) -> Result<()> {
        let mut held: [Option<Held>; N] = [const { None }; N];
        for (slot, i) in held.iter_mut().zip(inputs) {
            *slot = self.hold(i)?;
        }
        if held.iter().all(Option::is_none) {
            return Ok(());
        }
        let destinations = std::array::from_fn(|n| {
            let held = held[n].as_ref()?;
            Some(Destination { tensor: &held.tensor, accumulate: held.accumulate })
        });
        f(destinations).map_err(Into::into)?;
        for held in held.into_iter().flatten() {
            self.release(held)?;
        }
        Ok(())
    }

    /// Adds a ready gradient of input `i`. It is kept without a copy where it is the first, so it may share memory with `d_out`, say.
    ///
    /// # Errors
    /// A shape, dtype or device other than the input's.
    pub fn add(&mut self, i: usize, gradient: Tensor) -> Result<()> {
        let input = self.input(i)?;
        let Some(edge) = &input.edge else {
            return Ok(());
        };
        let shape = input.layout.shape();
        if gradient.shape() != shape || gradient.dtype() != input.dtype || *gradient.device() != input.device {
            return Err(Error::Gradient {
                op: self.op,
                input: i,
                expected: format!("{} {shape:?} on {}", input.dtype, input.device),
                got: format!("{} {:?} on {}", gradient.dtype(), gradient.shape(), gradient.device()),
            });
        }
        self.given[i] = true;
        self.walk.contribute(edge, gradient)
    }

    /// As [`Gradients::add`] for a gradient of the shape that input `i` was broadcast to: sums over the broadcast dimensions.
    ///
    /// # Errors
    /// A shape that input `i` does not broadcast to; another dtype or device.
    pub fn add_reduced(&mut self, i: usize, gradient: &Tensor) -> Result<()> {
        if gradient.shape() == self.shape(i) {
            return self.add(i, gradient.clone());
        }
        self.write(i, |d| gradient.reduce_into(Reduction::Sum, d))
    }

    /// Declares that the gradient of input `i` is zero.
    ///
    /// # Errors
    /// No such input.
    pub fn zero(&mut self, i: usize) -> Result<()> {
        self.write(i, |d| match d.accumulate {
            true => Ok(()),
            false => d.tensor.fill_(0.0),
        })
    }

    /// Refuses a backward that forgot an input.
    pub(crate) fn finish(self) -> Result<()> {
        let forgotten = |&i: &usize| self.wanted(i) && !self.given[i];
        match (0..self.inputs.len()).find(forgotten) {
            Some(input) => Err(Error::MissingGradient { op: self.op, input }),
            None => Ok(()),
        }
    }

    fn hold(&mut self, i: usize) -> Result<Option<Held>> {
        let input = self.input(i)?;
        let Some(edge) = &input.edge else {
            return Ok(None);
        };
        self.given[i] = true;
        let taken = self.walk.take(edge, input.dtype, self.wide);
        let accumulate = taken.is_some();
        let (tensor, in_place) = match taken {
            Some(taken) => taken,
            None => (self.scratch(i)?, false),
        };
        Ok(Some(Held { input: i, tensor, accumulate, in_place }))
    }

    fn release(&mut self, held: Held) -> Result<()> {
        match &self.inputs[held.input].edge {
            Some(edge) if !held.in_place => self.walk.contribute(edge, held.tensor),
            _ => Ok(()),
        }
    }
}
