//! Work recorded once and replayed by one call, as a CUDA graph.

use std::sync::Arc;

use cudarc::driver::sys;
use patchgpt_tensor::Result;

use crate::device::Cuda;
use crate::memory::Context;

/// Launches and copies of a device, ready to be replayed on its stream.
pub struct Graph {
    executable: sys::CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: the driver's handles may be used from any thread with the context current; launches are serialised by the stream.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Cuda {
    /// Records what `body` asks of the device, without running it. Every tensor that it reads or writes must have been allocated before and
    /// must live as long as the graph; `body` must read nothing back and must have run before, so that its kernels are compiled.
    ///
    /// # Errors
    /// Those of `body`; something that cannot be recorded.
    pub fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.bind()?;
        // SAFETY: the stream is alive.
        let begun = unsafe {
            sys::cuStreamBeginCapture_v2(self.stream(), sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        };
        self.check(begun, || "beginning to record a graph".into())?;
        let done = body();
        let mut graph = std::ptr::null_mut();
        self.bind()?;
        // SAFETY: the stream is being recorded and the pointer is valid.
        let ended = unsafe { sys::cuStreamEndCapture(self.stream(), &mut graph) };
        done?;
        self.check(ended, || "recording a graph".into())?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph is whole; the executable is a copy, so the graph goes right after.
        let made = unsafe {
            let made = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            sys::cuGraphDestroy(graph);
            made
        };
        self.check(made, || "making a graph executable".into())?;
        Ok(Graph { executable, context: self.context().clone() })
    }
}

impl Graph {
    /// Replays the recorded work on the stream.
    ///
    /// # Errors
    /// A device that failed before.
    pub fn launch(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: graph and stream are alive; the memory that it names is the caller's duty, as `capture` says.
        let result = unsafe { sys::cuGraphLaunch(self.executable, self.context.stream()) };
        self.context.check(result, || "the replay of a graph".into())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: made once, destroyed once, and no replay is under way.
            unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
    }
}
