//! The optimizer's primitives over flat storage.

use super::{expect_shape, same_device, same_kind};
use crate::backend::{AdamW, Rounded, Rounding};
use crate::cpu::round_stochastically;
use crate::{DType, Error, Result, Tensor};
use half::bf16;

impl AdamW<'_> {
    /// Runs the update; see [`Backend::adamw`](crate::Backend::adamw) for the formula.
    ///
    /// # Errors
    /// Buffers of unequal length or dtype, or not flat and contiguous, or two of them in one place; scalars that are not 0-d; betas
    /// outside [0, 1).
    pub fn run(self) -> Result<()> {
        let op = "adamw";
        let flat = [self.parameters, self.gradients, self.first_moment, self.second_moment];
        same_kind(op, &[flat[0], flat[1], flat[2], flat[3], self.learning_rate, self.clip])?;
        if self.parameters.dtype() == DType::BF16 {
            return Err(Error::dtype(op, "f32 or f64 (the master weights of a bf16 model)", DType::BF16));
        }
        same_device(op, &[self.parameters, self.step])?;
        for t in flat {
            expect_shape(op, "every buffer", t, &[self.parameters.len()])?;
            if !t.is_contiguous() {
                return Err(Error::shape(op, format!("contiguous buffers expected, got {:?}", t.layout())));
            }
        }
        // Backends admit an output in the place of an input, as in an op that works in place; here that is a mistake.
        let gradients = self.gradients;
        let in_its_place =
            |t: &Tensor| std::ptr::eq(&**t.buffer(), &**gradients.buffer()) && t.layout() == gradients.layout();
        if [self.parameters, self.first_moment, self.second_moment].into_iter().any(in_its_place) {
            return Err(Error::Overlap { op });
        }
        if let Some(Rounded { tensor, .. }) = self.rounded {
            same_device(op, &[self.parameters, tensor])?;
            expect_shape(op, "the rounded copy", tensor, &[self.parameters.len()])?;
            if (self.parameters.dtype(), tensor.dtype()) != (DType::F32, DType::BF16) || !tensor.is_contiguous() {
                return Err(Error::value(
                    op,
                    format!(
                        "parameters of f32 and a contiguous rounded copy of bf16 expected, got {} and {}, {:?}",
                        self.parameters.dtype(),
                        tensor.dtype(),
                        tensor.layout()
                    ),
                ));
            }
        }
        for (what, t) in
            [("the learning rate", self.learning_rate), ("the clip factor", self.clip), ("the step", self.step)]
        {
            expect_shape(op, what, t, &[])?;
        }
        if self.step.dtype() != DType::I32 {
            return Err(Error::dtype(op, DType::I32, self.step.dtype()));
        }
        let in_unit = |b: f64| (0.0..1.0).contains(&b);
        if !in_unit(self.beta1) || !in_unit(self.beta2) || self.decay_len > self.parameters.len() {
            return Err(Error::value(
                op,
                format!(
                    "betas in [0, 1) and at most {} decaying parameters expected, got {}, {} and {}",
                    self.parameters.len(),
                    self.beta1,
                    self.beta2,
                    self.decay_len
                ),
            ));
        }
        self.parameters.device().backend().adamw(self)?;
        for t in [self.parameters, self.first_moment, self.second_moment] {
            t.mark_written();
        }
        if let Some(rounded) = self.rounded {
            rounded.tensor.mark_written();
        }
        Ok(())
    }
}

impl Rounded<'_> {
    /// Writes `tensor` as update number `step` would from `x`, f32 and flat: what was not kept with the master weights is made again. It goes through
    /// the host's memory, so that it is nothing for every step.
    ///
    /// # Errors
    /// Another shape or dtype; a failure of the device.
    pub fn again(self, x: &Tensor, step: i32) -> Result<()> {
        let op = "adamw";
        expect_shape(op, "the rounded copy", self.tensor, x.shape())?;
        let Rounding::Stochastic { seed } = self.rounding else { return self.tensor.copy_(x) };
        let x = x.to_vec::<f32>()?;
        let mut rounded = vec![bf16::ZERO; x.len()];
        round_stochastically(seed, step, 0, &x, &mut rounded);
        self.tensor.write_from(&rounded)
    }
}

impl Tensor {
    /// `sqrt(sum x^2)` and the factor `min(1, max_norm / (norm + 1e-6))` that brings it down to `max_norm`; both 0-d.
    pub fn global_norm(&self, max_norm: f64) -> Result<(Tensor, Tensor)> {
        let norm = Tensor::empty(&[], self.dtype(), self.device())?;
        let clip = Tensor::empty(&[], self.dtype(), self.device())?;
        self.global_norm_into(max_norm, &norm, &clip)?;
        Ok((norm, clip))
    }

    /// [`Tensor::global_norm`] into given 0-d tensors.
    pub fn global_norm_into(&self, max_norm: f64, norm: &Tensor, clip: &Tensor) -> Result<()> {
        let op = "global_norm";
        same_kind(op, &[self, norm, clip])?;
        expect_shape(op, "the norm", norm, &[])?;
        expect_shape(op, "the clip factor", clip, &[])?;
        if max_norm.is_nan() || max_norm <= 0.0 {
            return Err(Error::value(
                op,
                format!("a positive largest norm expected (infinity for none), got {max_norm}"),
            ));
        }
        self.device().backend().global_norm(norm, clip, &self.contiguous()?, max_norm)?;
        norm.mark_written();
        clip.mark_written();
        Ok(())
    }
}
