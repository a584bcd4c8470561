//! Work that a device records once and replays: a CUDA graph, where the device is one that has them.
//!
//! ```
//! use patchgpt_tensor::{DType, Device, Result, Tensor};
//! # fn main() -> Result<()> {
//! # let device = Device::cpu()?;
//! let (x, y) = (Tensor::zeros(&[4], DType::F32, &device)?, Tensor::zeros(&[4], DType::F32, &device)?);
//! let work = || y.copy_(&x.affine(2.0, 1.0)?);
//! // The first time it runs as it is, and tells what a recording needs: nothing on a device that records nothing.
//! if let Some(memory) = device.rehearse(work)? {
//!     let graph = device.capture(memory, work)?;
//!     x.write_from(&[1f32, 2.0, 3.0, 4.0])?;
//!     graph.replay()?; // y is now [3, 5, 7, 9]
//!     y.mark_written();
//! }
//! # Ok(()) }
//! ```

use crate::{Device, Error, Result};

/// Recorded work, as a backend keeps it; [`Graph`] is what a program holds.
pub trait Replay: Send + Sync {
    /// Gives the work to the device once more, at the addresses and with the values of the recording.
    fn replay(&self) -> Result<()>;

    /// Kernels, copies and fills that it consists of.
    fn operations(&self) -> usize;
}

/// Recorded work of a device. It keeps the memory that it reads and writes.
///
/// A replay runs no code of the host: sizes, strides and numbers are those of the recording, and only what stands in memory may change between
/// replays. Nor does it bump the versions of the tensors that it writes: whoever replays tells them with [`Tensor::mark_written`](crate::Tensor::mark_written).
pub struct Graph {
    // Dropped before the device, whose kernels it launches.
    recorded: Box<dyn Replay>,
    _device: Device,
}

impl Graph {
    /// Gives the recorded work to the device once more.
    ///
    /// # Errors
    /// A device that failed before.
    pub fn replay(&self) -> Result<()> {
        self.recorded.replay()
    }

    /// Kernels, copies and fills that it consists of.
    pub fn operations(&self) -> usize {
        self.recorded.operations()
    }
}

impl Device {
    /// Runs `body`, and tells the bytes of memory that a recording of it needs for tensors of its own; `None` on a device that records nothing,
    /// where `body` has run all the same. It also makes what the device makes only once, such as compiled kernels.
    ///
    /// # Errors
    /// Those of `body`; a recording or rehearsal that is under way.
    pub fn rehearse<E: From<Error>>(&self, body: impl FnOnce() -> Result<(), E>) -> Result<Option<usize>, E> {
        with(body, |body| self.backend().rehearse(body))
    }

    /// Records what `body` asks of the device, without running it, to be replayed. `body` must have been rehearsed in the same state; `memory` is what
    /// the rehearsal told. Tensors that `body` makes lie in memory of the graph's own, at addresses that stay, and must be gone when it ends: what
    /// outlives it is written into tensors made before. No other thread may use the device meanwhile.
    ///
    /// # Errors
    /// Those of `body`; something that cannot be recorded, such as reading a number back or bringing one from the host; tensors that outlive
    /// `body`. The device can be used as before.
    pub fn capture<E: From<Error>>(&self, memory: usize, body: impl FnOnce() -> Result<(), E>) -> Result<Graph, E> {
        let recorded = with(body, |body| self.backend().capture(memory, body))?;
        Ok(Graph { recorded, _device: self.clone() })
    }
}

/// Calls a backend with a body whose errors are not the backend's.
fn with<R, E: From<Error>>(
    body: impl FnOnce() -> Result<(), E>,
    call: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<R>,
) -> Result<R, E> {
    let (mut body, mut failure) = (Some(body), None);
    let done = call(&mut || {
        let Some(body) = body.take() else {
            return Err(Error::value("graph", "the work is done once"));
        };
        body().map_err(|error| {
            failure = Some(error);
            Error::value("graph", "the work failed")
        })
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(done?),
    }
}
