//! Where the time goes: a [`Profiler`] is a backend around another one that times every primitive and counts its work.
//!
//! Open it around any device, compute on [`Profiler::device`], take the calls:
//!
//! ```
//! use patchgpt_tensor::{DType, Device, Tensor, profile::Profiler};
//! # fn main() -> patchgpt_tensor::Result<()> {
//! let profiler = Profiler::around(&Device::cpu()?);
//! let a = Tensor::zeros(&[64, 32], DType::F32, &profiler.device())?;
//! a.matmul(&a.t()?)?;
//! let calls = profiler.take();
//! assert_eq!((calls[1].op, calls[1].flops), ("matmul", 2.0 * 64.0 * 64.0 * 32.0));
//! # Ok(()) }
//! ```
//!
//! A call is what was asked of the device from outside: primitives that a primitive is composed of are part of it, so that
//! `linear_cross_entropy` is one call whether the device fuses it or not. Work is counted from shapes ([`Call::flops`],
//! [`Call::bytes`]). Devices may compute asynchronously, so each call waits for its end: a profiled step is slower than one
//! that is not, and throughput is measured without a profiler.

mod backend;
mod work;

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Backend, Device, Result};
use work::Work;

/// One primitive as it ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Name in the contract: `matmul`, `layer_norm_backward`; transfers from and to the host are `upload` and `download`.
    pub op: &'static str,
    /// When it began, counted from when the profiler was made.
    pub start: Duration,
    /// How long it took, until its results were there.
    pub elapsed: Duration,
    /// Arithmetic of the formula: a multiply-add counts two, an exponential or a root one. Causal attention counts the scores that exist.
    pub flops: f64,
    /// Least memory traffic: every input read once, every output written once, and read too where it is added to.
    pub bytes: f64,
    /// Shapes of the outputs, then of the inputs.
    pub shapes: Vec<Vec<usize>>,
}

/// A backend that forwards to another and keeps a list of the calls.
pub struct Profiler {
    measured: Device,
    begun: Instant,
    calls: Mutex<Vec<Call>>,
}

thread_local! {
    /// Whether this thread is inside a primitive that is being timed.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Leaves the outermost call, also where it panics.
struct Inside;

impl Inside {
    /// `None` within another call.
    fn enter() -> Option<Inside> {
        (!INSIDE.replace(true)).then_some(Inside)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

impl Profiler {
    /// A profiler of `device`, whose tensors and those of [`Profiler::device`] do not mix: they are two devices.
    pub fn around(device: &Device) -> Arc<Profiler> {
        Arc::new(Profiler { measured: device.clone(), begun: Instant::now(), calls: Mutex::default() })
    }

    /// The device to compute on.
    pub fn device(self: &Arc<Self>) -> Device {
        Device::new(self.clone())
    }

    /// The device that is measured.
    pub fn measured(&self) -> &Device {
        &self.measured
    }

    /// Time since the profiler was made: the clock of [`Call::start`].
    pub fn clock(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The calls so far, in the order in which they ended; the list starts over.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a primitive on the measured backend and, unless it is part of another, writes it down.
    fn call<'a>(
        &self,
        op: &'static str,
        work: impl FnOnce() -> Work<'a>,
        run: impl FnOnce(&dyn Backend) -> Result<()>,
    ) -> Result<()> {
        let backend = self.measured.backend();
        let Some(inside) = Inside::enter() else {
            return run(backend);
        };
        let start = self.clock();
        run(backend)?;
        backend.synchronize()?;
        let elapsed = self.clock() - start;
        drop(inside);
        let work = work();
        let call = Call { op, start, elapsed, flops: work.flops(), bytes: work.bytes(), shapes: work.shapes() };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
