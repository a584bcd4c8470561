//! Shapes without elements: a device whose tensors hold no memory and whose primitives compute nothing, but which counts what they would
//! hold. A training step on it takes milliseconds whatever the model's size and tells the step's memory to the byte:
//!
//! ```
//! use patchgpt_tensor::{DType, Meta, MemoryModel, Tensor};
//! # fn main() -> patchgpt_tensor::Result<()> {
//! let meta = Meta::new(MemoryModel::cpu());
//! let a = Tensor::zeros(&[1 << 20, 1 << 20], DType::F32, &meta.device())?;
//! let b = a.matmul(&a.t()?)?;
//! assert_eq!(b.shape(), [1 << 20, 1 << 20]);
//! assert_eq!(meta.memory_held(), 8 << 40);
//! # Ok(()) }
//! ```
//!
//! Checks of shapes, dtypes and indices are those of every device, since they stand before it. A [`Profiler`](crate::profile::Profiler) around it
//! counts FLOPs and bytes. Elements that are read are unknown: NaN, and -1 in integers.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{
    AdamW, Backend, Binary, Destination, Distribution, LinearCrossEntropy, Reduction, Residual, Unary,
};
use crate::ops::{HOST_LOGITS, linear_cross_entropy_by_chunks, linear_cross_entropy_on_host};
use crate::{Arena, DType, Device, Error, Memory, Place, Replay, Result, ScatterIndex, Tensor};

/// How many rows of logits the head and its loss hold at a time: `bytes` of them, in multiples of `rows`, but at least `rows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitChunk {
    /// Bytes of logits.
    pub bytes: usize,
    /// Fewest rows.
    pub rows: usize,
    /// Bytes of which a row takes a multiple, a power of two: where its values begin decides how fast products and kernels move them.
    pub alignment: usize,
}

impl LogitChunk {
    /// Rows of a chunk of `rows` rows of `vocabulary` logits of `size` bytes each.
    pub fn rows_of(&self, rows: usize, vocabulary: usize, size: usize) -> usize {
        let fit = self.bytes / (self.columns_of(vocabulary, size).max(1) * size);
        (fit / self.rows * self.rows).max(self.rows).min(rows)
    }

    /// Columns that rows of `vocabulary` logits of `size` bytes each take.
    pub fn columns_of(&self, vocabulary: usize, size: usize) -> usize {
        (vocabulary * size).next_multiple_of(self.alignment.max(size)) / size
    }
}

/// What decides how much memory a kind of device takes for the same tensors.
#[derive(Clone, Copy, Debug)]
pub struct MemoryModel {
    /// Bytes that an allocation of so many bytes holds.
    pub allocation: fn(usize) -> usize,
    /// Logits that the head and its loss hold.
    pub logits: LogitChunk,
    /// Whether the head computes bf16 in f32 copies of its factors.
    pub widens_head: bool,
    /// Bytes that the device holds from the start, tensors or not.
    pub constant: usize,
    /// Whether the device records work to be replayed, in memory of the recording's own.
    pub graphs: bool,
    /// Whether a product that is met for the first time is timed into memory beside its result, which is given back when that is done.
    pub searches: bool,
}

impl MemoryModel {
    /// The CPU's.
    pub fn cpu() -> MemoryModel {
        MemoryModel {
            allocation: crate::cpu::size_class,
            logits: HOST_LOGITS,
            widens_head: crate::cpu::widens_head(),
            constant: 0,
            graphs: false,
            searches: false,
        }
    }
}

/// The backend without elements. See the module's documentation.
pub struct Meta {
    model: MemoryModel,
    account: Arc<Account>,
    recorder: Mutex<Option<Recorder>>,
    /// Products that have been timed: result and factors.
    timed: Mutex<HashSet<[Matrices; 3]>>,
}

/// Shape, strides and dtype.
type Matrices = (Vec<usize>, Vec<usize>, DType);

/// What is under way.
#[derive(Clone)]
struct Recorder {
    arena: Arena,
    /// Whether places in the arena are all the memory there is, as in a recording, or stand beside memory as usual, as in a rehearsal.
    capturing: bool,
}

#[derive(Default)]
struct Account {
    held: AtomicUsize,
    peak: AtomicUsize,
}

impl Meta {
    /// A device that counts memory as `model` says.
    pub fn new(model: MemoryModel) -> Arc<Meta> {
        let account = Account { held: model.constant.into(), peak: model.constant.into() };
        Arc::new(Meta { model, account: Arc::new(account), recorder: Mutex::default(), timed: Mutex::default() })
    }

    /// The device to make tensors on.
    pub fn device(self: &Arc<Self>) -> Device {
        Device::new(self.clone())
    }

    /// Bytes that live tensors would hold.
    pub fn memory_held(&self) -> usize {
        self.account.held.load(Ordering::Relaxed)
    }

    /// The most bytes that live tensors would have held at one time.
    pub fn memory_peak(&self) -> usize {
        self.account.peak.load(Ordering::Relaxed)
    }
}

impl Meta {
    fn recorder(&self) -> Option<Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, bytes: usize, place: Option<Place>) -> Nothing {
        let account = self.account.clone();
        let held = account.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        account.peak.fetch_max(held, Ordering::Relaxed);
        Nothing { bytes, account, _place: place }
    }

    /// Holds for a moment what timing a product takes, if it is the first of its kind.
    fn time(&self, product: [&Tensor; 3]) {
        let kind = product.map(|t| (t.shape().to_vec(), t.strides().to_vec(), t.dtype()));
        if self.model.searches && self.timed.lock().unwrap_or_else(PoisonError::into_inner).insert(kind) {
            let [out, ..] = product;
            let last: usize =
                out.shape().iter().zip(out.strides()).map(|(&size, &stride)| (size.max(1) - 1) * stride).sum();
            self.hold((self.model.allocation)((last + 1) * out.dtype().size()), None);
        }
    }

    /// Runs `body` with its allocations in an arena.
    fn record(&self, capturing: bool, body: &mut dyn FnMut() -> Result<()>) -> Result<Arena> {
        let arena = Arena::new();
        let set = |recorder| *self.recorder.lock().unwrap_or_else(PoisonError::into_inner) = recorder;
        set(Some(Recorder { arena: arena.clone(), capturing }));
        let done = body();
        set(None);
        done.map(|()| arena)
    }
}

/// So many bytes of nothing.
struct Nothing {
    bytes: usize,
    account: Arc<Account>,
    _place: Option<Place>,
}

impl Memory for Nothing {}

/// Recorded nothing, and the memory that it would hold.
struct Recorded {
    _memory: Nothing,
}

impl Replay for Recorded {
    fn replay(&self) -> Result<()> {
        Ok(())
    }

    fn operations(&self) -> usize {
        0
    }
}

impl Drop for Nothing {
    fn drop(&mut self) {
        self.account.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Primitives that do nothing.
macro_rules! nothing {
    ($($name:ident($($argument:ty),*);)*) => {
        $(fn $name(&self, $(_: $argument),*) -> Result<()> {
            Ok(())
        })*
    };
}

impl Backend for Meta {
    fn name(&self) -> String {
        "meta".into()
    }

    fn allocate(&self, bytes: usize) -> Result<Box<dyn Memory>> {
        let recorder = self.recorder();
        let place = recorder.as_ref().map(|recorder| recorder.arena.place(bytes));
        let capturing = recorder.is_some_and(|recorder| recorder.capturing);
        let bytes = if capturing { 0 } else { (self.model.allocation)(bytes) };
        Ok(Box::new(self.hold(bytes, place)))
    }

    fn rehearse(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Option<usize>> {
        if !self.model.graphs {
            body()?;
            return Ok(None);
        }
        Ok(Some(self.record(false, body)?.extent()))
    }

    fn capture(&self, memory: usize, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Replay>> {
        let held = self.hold((self.model.allocation)(memory), None);
        let arena = self.record(true, body)?;
        match arena.extent() <= memory && arena.taken() == 0 {
            true => Ok(Box::new(Recorded { _memory: held })),
            false => Err(Error::Backend {
                device: self.name(),
                message: format!(
                    "a recording of {memory} bytes took {} and left {} tensors behind",
                    arena.extent(),
                    arena.taken()
                ),
            }),
        }
    }

    fn download(&self, _: &Tensor, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0xFF);
        Ok(())
    }

    fn memory_peak(&self) -> Option<usize> {
        Some(Meta::memory_peak(self))
    }

    fn matmul(&self, out: Destination, a: &Tensor, b: &Tensor, _: f64) -> Result<()> {
        self.time([out.tensor, a, b]);
        Ok(())
    }

    fn linear_cross_entropy(&self, args: LinearCrossEntropy) -> Result<()> {
        match self.model.widens_head {
            true => linear_cross_entropy_on_host(self, args),
            false => linear_cross_entropy_by_chunks(self, self.model.logits, args),
        }
    }

    nothing! {
        upload(&Tensor, &[u8]);
        synchronize();
        fill(&Tensor, f64);
        copy(&Tensor, &Tensor);
        random(&Tensor, Distribution, u64, u64);
        unary(&Tensor, Unary, &Tensor);
        binary(Destination, Binary, &Tensor, &Tensor);
        reduce(Destination, Reduction, &Tensor);
        softmax(&Tensor, &Tensor);
        softmax_backward(Destination, &Tensor, &Tensor);
        patch_embedding(&Tensor, &Tensor, &Tensor);
        patch_embedding_backward(Destination, &Tensor, &ScatterIndex, usize);
        rms_norm(&Tensor, &Tensor, &Tensor, Option<Residual>, &Tensor, f64);
        rms_norm_backward(Option<Destination>, Option<Destination>, &Tensor, &Tensor, &Tensor, &Tensor);
        layer_norm(&Tensor, &Tensor, &Tensor, &Tensor, Option<Residual>, &Tensor, &Tensor, f64);
        layer_norm_backward(Option<Destination>, Option<Destination>, Option<Destination>, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor);
        rope(&Tensor, &Tensor, &Tensor, &Tensor, bool);
        causal_attention(&Tensor, &Tensor, &Tensor, &Tensor, &Tensor, f64);
        causal_attention_backward(Destination, Destination, Destination, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor, f64);
        gelu(&Tensor, &Tensor);
        gelu_backward(Destination, &Tensor, &Tensor);
        swiglu(&Tensor, &Tensor);
        swiglu_backward(Destination, &Tensor, &Tensor);
        cross_entropy(&Tensor, &Tensor, &Tensor, &Tensor, &Tensor);
        cross_entropy_backward(Destination, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor);
        adamw(AdamW);
        global_norm(&Tensor, &Tensor, &Tensor, f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn model(logits: LogitChunk) -> MemoryModel {
        let (widens_head, constant, graphs, searches) = (false, 100, true, false);
        MemoryModel { allocation: |bytes| bytes, logits, widens_head, constant, graphs, searches }
    }

    fn exact() -> Arc<Meta> {
        let logits = LogitChunk { bytes: 1 << 10, rows: 2, alignment: 1 };
        Meta::new(model(logits))
    }

    #[test]
    fn live_tensors_are_counted_and_the_peak_remembered() {
        let meta = exact();
        let device = meta.device();
        let a = Tensor::zeros(&[10], DType::F32, &device).expect("a tensor");
        let b = a.gelu().expect("a tensor");
        assert_eq!((meta.memory_held(), meta.memory_peak()), (180, 180));
        drop((a, b));
        assert_eq!((meta.memory_held(), meta.memory_peak()), (100, 180));
    }

    #[test]
    fn checks_are_those_of_every_device_and_elements_are_unknown() {
        let device = exact().device();
        let a = Tensor::zeros(&[2, 3], DType::F32, &device).expect("a tensor");
        assert!(matches!(a.matmul(&a), Err(Error::Shape { .. })));
        assert!(a.to_vec::<f32>().expect("elements").iter().all(|x| x.is_nan()));
        let ids = Tensor::from_slice(&[9i32], &[1, 1], &device).expect("a tensor");
        assert!(matches!(a.patch_embedding(&ids), Err(Error::Index { .. })), "an id beyond the table");
    }

    #[test]
    fn a_recording_holds_what_its_rehearsal_told_and_nothing_may_outlive_it() {
        let meta = exact();
        let device = meta.device();
        let a = Tensor::zeros(&[100], DType::F32, &device).expect("a tensor");
        let work = || a.copy_(&a.gelu()?.gelu()?);
        let memory = device.rehearse(work).expect("a run").expect("a device that records");
        assert_eq!((memory, meta.memory_held(), meta.memory_peak()), (1024, 500, 500 + 800));
        let graph = device.capture(memory, work).expect("a recording");
        assert_eq!((meta.memory_held(), meta.memory_peak()), (500 + 1024, 500 + 1024));
        graph.replay().expect("a replay");
        drop(graph);
        assert_eq!(meta.memory_held(), 500);
        let mut kept = None;
        let leaves = device.capture(memory, || a.gelu().map(|made| kept = Some(made)));
        assert!(leaves.is_err_and(|error| error.to_string().contains("1 tensors behind")));
        assert!(device.capture(256, work).is_err(), "less memory than it needs");
        let own = device.rehearse(|| Err::<(), _>(Error::value("mine", "an error of the work's own")));
        assert!(own.is_err_and(|error| error.to_string().contains("of the work's own")));
    }

    #[test]
    fn a_product_is_timed_once_beside_its_result() {
        let meta = Meta::new(MemoryModel { searches: true, ..model(LogitChunk { bytes: 0, rows: 1, alignment: 1 }) });
        let make = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &meta.device()).expect("a tensor");
        let (a, b, out) = (make(&[10, 4]), make(&[4, 5]), make(&[10, 5]));
        let held = meta.memory_held();
        a.matmul_into(&b, 1.0, Destination::write(&out)).expect("a product");
        assert_eq!((meta.memory_held(), meta.memory_peak()), (held, held + 200));
        let more = make(&[20]);
        a.matmul_into(&b, 1.0, Destination::add(&out)).expect("a product");
        assert_eq!(meta.memory_peak(), held + 200, "it is known");
        // Half the columns of something: ten rows of five that lie ten apart.
        let half = make(&[10, 10]).narrow(1, 0, 5).expect("a view");
        a.matmul_into(&b, 1.0, Destination::write(&half)).expect("a product");
        assert_eq!(meta.memory_peak(), held + 80 + 400 + 380);
        drop(more);
    }

    #[test]
    fn the_head_holds_a_chunk_of_logits() {
        let meta = exact();
        let make = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &meta.device()).expect("a tensor");
        let (x, weight, weights, scale) = (make(&[64, 4]), make(&[32, 4]), make(&[1]), make(&[]));
        let targets = Tensor::from_slice(&[1i32; 64], &[64, 1], &meta.device()).expect("a tensor");
        let held = meta.memory_held();
        x.linear_cross_entropy(&weight, &targets, &weights, &scale, None, None).expect("losses");
        // 8 rows of 32 logits are 1 KiB; their log-sum-exps; the losses of all 64 rows.
        assert_eq!(meta.memory_peak(), held + 1024 + 8 * 4 + 64 * 4);
    }
}
