//! What the benches of patchgpt share: case tables turned into timed calls.
//!
//! `cargo bench -p patchgpt-benches` runs all of them; `cargo bench -p patchgpt-benches --bench ops -- matmul` those whose name
//! contains "matmul". The figures are floating-point operations or bytes per second, from the costs in the case tables.

use patchgpt_autograd::{Result, Var};
use patchgpt_tensor::{DType, Device, Tensor};
use patchgpt_tests::cases::Case;

/// A case whose inputs lie on a device, ready to be run again and again.
pub struct Prepared {
    case: Case,
    inputs: Vec<Var>,
}

impl Prepared {
    /// Places the inputs of `case` on `device`.
    pub fn new(case: Case, dtype: DType, device: &Device) -> Result<Prepared> {
        let place = |(array, placement): &(_, patchgpt_tests::array::Placement)| {
            Ok(Var::parameter(placement.place(array, dtype, device)?))
        };
        let inputs = case.inputs.iter().map(place).collect::<Result<Vec<_>>>()?;
        Ok(Prepared { case, inputs })
    }

    /// The case.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// The forward pass alone.
    pub fn forward(&self) -> Result<Tensor> {
        patchgpt_autograd::no_grad(|| Ok((self.case.run)(&self.inputs)?.tensor().clone()))
    }

    /// Forward and backward, the output's gradient being the output itself.
    pub fn forward_backward(&self) -> Result<()> {
        let out = (self.case.run)(&self.inputs)?;
        out.backward_with(out.tensor(), false)
    }
}
