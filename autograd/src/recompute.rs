//! Activation recomputation: save a function's inputs, forget what it computes inside, and run it again in backward.
//!
//! The second run is recorded with the same places for its inputs and parameters, and the walk goes on through it in the
//! order it would have taken without recomputation; gradients are the same to the bit. Source: Chen et al., arXiv 1604.06174.

use crate::function::SavedTensor;
use crate::graph::{Input, Kind, Node, Work};
use crate::recording::{self, Recording};
use crate::{Error, Result, Var};

type Recomputed = Box<dyn Fn(&[Var]) -> Result<Var> + Send + Sync>;

/// A function to run again, its inputs, and the parameters it read.
pub(crate) struct Recomputation {
    function: Recomputed,
    inputs: Vec<SavedTensor>,
    parameters: Vec<SavedTensor>,
    shape: Vec<usize>,
}

/// `f(inputs)`, of which only the inputs are kept for backward, which runs `f` again. Parameters and other tracked values that `f` captures get
/// their gradients too. `f` must compute the same thing when it runs again.
///
/// # Errors
/// Those of `f`. Backward fails if an input, or a parameter that `f` read, was written in place since.
pub fn recompute(f: impl Fn(&[Var]) -> Result<Var> + Send + Sync + 'static, inputs: &[&Var]) -> Result<Var> {
    let vars: Vec<Var> = inputs.iter().map(|&x| x.clone()).collect();
    if recording::state() != Recording::On {
        return f(&vars);
    }
    let saved = inputs.iter().enumerate().map(|(i, x)| SavedTensor::new(x.tensor(), Some(i)));
    let saved = saved.collect();
    let (output, parameters) = recording::rehearse(|| f(&vars));
    let output = output?;
    if !output.edge().is_some_and(|e| matches!(e.node.kind, Kind::Rehearsed)) {
        // A constant, or an input or parameter itself: nothing inside needs to be computed again.
        return Ok(output);
    }
    let recomputation =
        Recomputation { function: Box::new(f), inputs: saved, parameters, shape: output.shape().to_vec() };
    let inputs = vars.iter().map(|x| Input::new(x.tensor(), x.edge().cloned())).collect();
    let node = Node::op("recompute", 1, Work::Recomputation(recomputation), inputs);
    Ok(Var::of_node(output.tensor().clone(), node, 0))
}

impl Recomputation {
    /// Runs the function again; the thread must be recording.
    pub(crate) fn run(&self, inputs: &[Input]) -> Result<Var> {
        let op = "recompute";
        for saved in &self.inputs {
            saved.check(op, || "a saved tensor".into())?;
        }
        for parameter in &self.parameters {
            parameter.check(op, || "a parameter that the function reads,".into())?;
        }
        let places = inputs.iter().map(|input| input.edge.clone());
        let vars: Vec<Var> =
            self.inputs.iter().zip(places).map(|(saved, edge)| Var::at(saved.tensor().clone(), edge)).collect();
        let output = (self.function)(&vars)?;
        if !output.is_tracked() || output.shape() != self.shape {
            return Err(Error::value(
                op,
                format!(
                    "the function must compute the same thing when it runs again: a tracked {:?} before, now {} {:?}",
                    self.shape,
                    if output.is_tracked() { "a tracked" } else { "an untracked" },
                    output.shape()
                ),
            ));
        }
        Ok(output)
    }
}
