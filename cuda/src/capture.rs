//! Recording the stream as a CUDA graph. Between the beginning and the end of a recording nothing runs and nothing is allocated: tensors lie in
//! one block of memory that the graph keeps, at places that an arena gives out, so that the graph holds kernels, copies and fills alone. How large
//! the block must be is known from a rehearsal, which runs the same work as it is while the same arena is asked for the same places.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::ThreadId;

use cudarc::driver::sys;
use patchgpt_tensor::{Arena, Place, Replay, Result, in_words};

use crate::error::backend;
use crate::memory::{Block, Context, State};

/// A rehearsal or a recording that is under way.
pub(crate) struct Recorder {
    /// Whose work it is.
    thread: ThreadId,
    arena: Arena,
    /// What only a recording has.
    capture: Option<Capture>,
}

struct Capture {
    /// The graph's own memory; `None` if it needs none.
    block: Option<Arc<Block>>,
    /// Other memory that the graph names, by address.
    kept: BTreeMap<u64, Arc<Block>>,
    /// Blocks that were dropped meanwhile.
    freed: Vec<u64>,
}

impl Recorder {
    fn new(capture: Option<Capture>) -> Recorder {
        Recorder { thread: std::thread::current().id(), arena: Arena::new(), capture }
    }

    /// Keeps memory as long as the graph.
    pub(crate) fn keep(&mut self, block: &Arc<Block>) {
        if let Some(capture) = &mut self.capture {
            capture.kept.entry(block.address).or_insert_with(|| block.clone());
        }
    }

    /// Where addresses go that cannot be freed now.
    pub(crate) fn freed(&mut self) -> Option<&mut Vec<u64>> {
        Some(&mut self.capture.as_mut()?.freed)
    }
}

impl State {
    /// Refuses a thread beside one that records.
    pub(crate) fn check_thread(&self, device: &str) -> Result<()> {
        match &self.recorder {
            Some(Recorder { thread, capture: Some(_), .. }) if *thread != std::thread::current().id() => Err(backend(
                device,
                "another thread is recording a graph on this device: until it has ended, only that thread may use the device",
            )),
            _ => Ok(()),
        }
    }

    /// The place of an allocation in what this thread rehearses or records, with the block if it is recorded.
    pub(crate) fn place(&self, device: &str, bytes: usize) -> Result<Option<(Place, Option<Arc<Block>>)>> {
        self.check_thread(device)?;
        let Some(Recorder { thread, arena, capture }) = &self.recorder else { return Ok(None) };
        if *thread != std::thread::current().id() {
            return Ok(None);
        }
        let place = arena.place(bytes);
        let Some(Capture { block, .. }) = capture else { return Ok(Some((place, None))) };
        match block {
            Some(block) if arena.extent() <= block.bytes => Ok(Some((place, Some(block.clone())))),
            _ => Err(backend(
                device,
                format!(
                    "an allocation of {} does not fit into the graph's memory of {}: the work that is recorded is not that of the rehearsal",
                    in_words(bytes),
                    in_words(block.as_ref().map_or(0, |block| block.bytes))
                ),
            )),
        }
    }
}

impl Context {
    /// An error while the stream is recorded: `what` cannot be.
    pub(crate) fn refuse_in_capture(&self, what: impl FnOnce() -> String) -> Result<()> {
        if !self.capturing.load(Ordering::Acquire) {
            return Ok(());
        }
        self.state().check_thread(self.name())?;
        Err(backend(self.name(), format!("{} cannot be recorded in a CUDA graph", what())))
    }

    /// See [`Backend::rehearse`](patchgpt_tensor::Backend::rehearse).
    pub(crate) fn rehearse(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<usize> {
        self.begin(Recorder::new(None))?;
        let done = catch_unwind(AssertUnwindSafe(body));
        let recorder = self.state().recorder.take();
        done.unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok(recorder.map_or(0, |recorder| recorder.arena.extent()))
    }

    /// See [`Backend::capture`](patchgpt_tensor::Backend::capture).
    pub(crate) fn capture(self: &Arc<Self>, memory: usize, body: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        // What the rehearsal has left in the driver's pool makes room for the block.
        self.trim()?;
        let block = match memory {
            0 => None,
            _ => Some(self.block(memory, true)?),
        };
        self.begin(Recorder::new(Some(Capture { block, kept: BTreeMap::new(), freed: Vec::new() })))?;
        self.capturing.store(true, Ordering::Release);
        // SAFETY: the stream is alive.
        let begun = unsafe {
            sys::cuStreamBeginCapture_v2(self.stream(), sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        };
        let begun = self.check(begun, || "beginning to record a graph".into());
        let done = if begun.is_ok() { catch_unwind(AssertUnwindSafe(body)) } else { Ok(Ok(())) };
        let mut raw = std::ptr::null_mut();
        let ended = begun.and_then(|()| {
            // SAFETY: the stream is being recorded by this thread and the pointer is valid.
            let ended = unsafe { sys::cuStreamEndCapture(self.stream(), &mut raw) };
            self.check(ended, || "recording a graph".into())
        });
        let recorder = self.state().recorder.take();
        self.capturing.store(false, Ordering::Release);
        let raw = Raw(raw);
        let Some(Recorder { arena, capture: Some(Capture { block, kept, freed }), .. }) = recorder else {
            return Err(backend(self.name(), "the recording of a graph was lost"));
        };
        freed.into_iter().for_each(|address| self.free(address));
        done.unwrap_or_else(|panic| resume_unwind(panic))?;
        ended?;
        if arena.taken() > 0 {
            let message = format!(
                "{} tensors that were made while a graph was recorded outlive the recording, and replays would write over them: copy what is \
                 to stay into tensors made before",
                arena.taken()
            );
            return Err(backend(self.name(), message));
        }
        self.instantiate(&raw, block.into_iter().chain(kept.into_values()).collect())
    }

    fn begin(&self, recorder: Recorder) -> Result<()> {
        let mut state = self.state();
        if state.recorder.is_some() {
            return Err(backend(self.name(), "a graph is recorded or rehearsed already: one at a time is possible"));
        }
        state.recorder = Some(recorder);
        Ok(())
    }

    fn instantiate(self: &Arc<Self>, raw: &Raw, memory: Vec<Arc<Block>>) -> Result<Graph> {
        let (mut executable, mut operations) = (std::ptr::null_mut(), 0);
        // SAFETY: the graph is whole and the pointers are valid; with no place for nodes their number alone is told.
        let counted = unsafe { sys::cuGraphGetNodes(raw.0, std::ptr::null_mut(), &mut operations) };
        self.check(counted, || "counting what a graph consists of".into())?;
        // SAFETY: the graph is whole and the pointer valid; the executable is a copy.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, raw.0, 0) };
        self.check(made, || format!("making a graph of {operations} operations executable"))?;
        Ok(Graph { executable, operations, context: self.clone(), _memory: memory })
    }
}

/// A graph as it was recorded.
struct Raw(sys::CUgraph);

impl Drop for Raw {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: from the end of a recording, destroyed once.
            unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

/// Kernels, copies and fills of a device, ready to be replayed on its stream, with all memory that they name.
pub(crate) struct Graph {
    executable: sys::CUgraphExec,
    operations: usize,
    context: Arc<Context>,
    _memory: Vec<Arc<Block>>,
}

// SAFETY: the driver's handles may be used from any thread with the context current; launches are serialised by the stream.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Replay for Graph {
    fn replay(&self) -> Result<()> {
        self.context.refuse_in_capture(|| "the replay of a graph".into())?;
        self.context.bind()?;
        // SAFETY: graph and stream are alive, and so is the memory that the graph names, which it keeps.
        let result = unsafe { sys::cuGraphLaunch(self.executable, self.context.stream()) };
        self.context.check(result, || "the replay of a graph".into())
    }

    fn operations(&self) -> usize {
        self.operations
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
