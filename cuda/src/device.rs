//! [`Cuda`]: an opened device with its stream, memory, compiled kernels and cuBLAS.

use std::ffi::c_void;
use std::fmt;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use patchgpt_tensor::{Device, Result, Tensor};

use crate::blas::{Blas, WORKSPACE_BYTES};
use crate::blas_lt::{BlasLt, GemmChoices};
use crate::compiler::{Compiler, Function};
use crate::emulator;
use crate::error::{backend, describe};
use crate::launch::Specialisation;
use crate::memory::{Context, CudaMemory};
use crate::ops::gemm;
use crate::probe::{self, DeviceInfo, Library};
use crate::staging::Staging;
use crate::variants::Choices;

/// A CUDA device, or the emulator in its place, with one stream on which everything runs in order.
pub struct Cuda {
    // Dropped in this order: what holds memory or modules of the context before the context.
    blas: OnceLock<Blas>,
    blas_lt: OnceLock<BlasLt>,
    products_workspace: OnceLock<Arc<CudaMemory>>,
    compiler: Compiler,
    staging: Staging,
    context: Arc<Context>,
    info: DeviceInfo,
    shared_memory: usize,
    emulated: bool,
    pub(crate) choices: Choices,
}

impl Cuda {
    /// Opens device number `ordinal` of those that [`probe`](crate::probe()) lists.
    ///
    /// # Errors
    /// Libraries that are missing or too old, a number that no device has, a device older than compute capability 8.0.
    pub fn open(ordinal: usize) -> Result<Cuda> {
        emulator::forbid()?;
        Cuda::on(ordinal, false)
    }

    /// Opens the emulated device: the same kernels and launches on the CPU, one thread after another, to find mistakes. It is slow.
    ///
    /// # Errors
    /// No C++ compiler; a process that has used a card.
    pub fn emulated() -> Result<Cuda> {
        emulator::load()?;
        Cuda::on(0, true)
    }

    /// This device as a [`Device`] of tensors.
    pub fn into_device(self) -> Device {
        Device::new(Arc::new(self))
    }

    fn on(ordinal: usize, emulated: bool) -> Result<Cuda> {
        let devices = probe::devices()?;
        let Some(info) = devices.get(ordinal).cloned() else {
            return Err(backend(
                format!("cuda:{ordinal}"),
                format!("there are {} devices, numbered from 0; `patchgpt devices` lists them", devices.len()),
            ));
        };
        let name = if emulated { "cuda:emulated".into() } else { format!("cuda:{ordinal}") };
        if (info.name == emulator::DEVICE_NAME) != emulated {
            return Err(backend(name, format!("the driver offers `{}`: card and emulator are mixed up", info.name)));
        }
        if info.compute_capability < (8, 0) {
            let (major, minor) = info.compute_capability;
            return Err(backend(
                name,
                format!("{} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer", info.name),
            ));
        }
        let choices = Choices::from_environment().map_err(|message| backend(&name, message))?;
        let context = Context::create(ordinal, name, emulated)?;
        let limit = |which| {
            probe::attribute(context.device(), which)
                .map(|n| n as usize)
                .map_err(|result| backend(context.name(), format!("asking for a limit failed: {}", describe(result))))
        };
        let shared_memory = limit(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        Library::Nvrtc.require()?;
        let compiler = Compiler::new(context.clone(), info.compute_capability)?;
        Ok(Cuda {
            blas: OnceLock::new(),
            blas_lt: OnceLock::new(),
            products_workspace: OnceLock::new(),
            compiler,
            staging: Staging::new(context.clone()),
            context,
            info,
            shared_memory,
            emulated,
            choices,
        })
    }

    /// What the driver says of the device.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Whether this is the emulator.
    pub fn is_emulated(&self) -> bool {
        self.emulated
    }

    /// Number of multiprocessors: a guide for how many blocks share work, never for how it is cut.
    pub fn multiprocessors(&self) -> usize {
        self.info.multiprocessors
    }

    /// Bytes of shared memory that a block can have at most, static and dynamic together.
    pub fn shared_memory_per_block(&self) -> usize {
        self.shared_memory
    }

    /// The address of a tensor's first element on the device.
    ///
    /// # Errors
    /// A tensor of another device.
    pub fn address(&self, tensor: &Tensor) -> Result<u64> {
        match tensor.buffer().memory::<CudaMemory>() {
            Some(memory) if memory.is_of(&self.context) => {
                Ok(memory.address() + (tensor.layout().offset() * tensor.dtype().size()) as u64)
            }
            _ => Err(backend(
                self.context.name(),
                format!("a tensor on {} was passed to a kernel here", tensor.device()),
            )),
        }
    }

    /// Whether rows of a tensor can be read and written 16 bytes at a time: its first element and every stride but the last are multiples of 16
    /// bytes, and so is the last dimension's length.
    pub fn aligned(&self, tensor: &Tensor) -> bool {
        let size = tensor.dtype().size();
        let rank = tensor.rank();
        let whole = |elements: usize| (elements * size).is_multiple_of(16);
        rank > 0
            && whole(tensor.dim(rank - 1))
            && whole(tensor.layout().offset())
            && (0..rank - 1).all(|d| tensor.dim(d) <= 1 || whole(tensor.strides()[d]))
    }

    /// Bytes that live tensors and scratch memory hold.
    pub fn memory_held(&self) -> usize {
        self.context.held().0
    }

    /// The most bytes that they have held at one time.
    pub fn memory_peak(&self) -> usize {
        self.context.held().1
    }

    /// Scratch memory with unspecified contents. It may be dropped as soon as the kernels that use it have been launched.
    ///
    /// # Errors
    /// Too little memory.
    pub fn workspace(&self, bytes: usize) -> Result<CudaMemory> {
        self.context.allocate(bytes)
    }

    /// Writes zeros into scratch memory.
    ///
    /// # Errors
    /// A device that failed before.
    pub fn clear(&self, memory: &CudaMemory) -> Result<()> {
        if memory.bytes() == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the memory is that long and lives until the stream has passed this.
        let result = unsafe { sys::cuMemsetD8Async(memory.address(), 0, memory.bytes(), self.stream()) };
        self.check(result, || "clearing memory".into())
    }

    /// The compiled function of an entry point.
    pub(crate) fn function(&self, specialisation: &Specialisation, entry: &'static str) -> Result<Function> {
        self.compiler.function(specialisation, entry)
    }

    pub(crate) fn blas(&self) -> Result<&Blas> {
        made_once(&self.blas, || Blas::new(self.context.clone(), self.products_workspace()?))
    }

    pub(crate) fn blas_lt(&self) -> Result<&BlasLt> {
        made_once(&self.blas_lt, || BlasLt::new(self, None))
    }

    /// The workspace of both libraries.
    pub(crate) fn products_workspace(&self) -> Result<Arc<CudaMemory>> {
        let make = || self.context.allocate_lasting(WORKSPACE_BYTES).map(Arc::new);
        made_once(&self.products_workspace, make).cloned()
    }

    /// This device with a timed search: for each product that it meets for the first time, the algorithms that cuBLASLt offers are run on the
    /// product's inputs into memory of their own, and the fastest computes it from then on. Without a search it is the one that the library expects to
    /// be the fastest, which depends on its version and the card alone. Times vary, so a search decides bits: `known` repeats the choices of an
    /// earlier one, and [`Cuda::gemm_choices`] tells what has been chosen.
    ///
    /// # Errors
    /// Choices that were made for another version of cuBLASLt or another card; the choice of `gemm=blas`, which is another library.
    pub fn with_gemm_search(mut self, known: Option<GemmChoices>) -> Result<Cuda> {
        if !gemm::fused(&self).bias {
            let message = "a search times cuBLASLt's algorithms, and gemm=blas has chosen cuBLAS: choose gemm=lt or gemm=lt_gelu, or search nothing";
            return Err(backend(&self, message));
        }
        let empty = || BlasLt::no_choices(&self);
        let known = known.map_or_else(empty, Ok)?;
        self.blas_lt = OnceLock::from(BlasLt::new(&self, Some(known))?);
        Ok(self)
    }

    /// The algorithms that a search has chosen or taken over so far; `None` without [`Cuda::with_gemm_search`].
    pub fn gemm_choices(&self) -> Option<GemmChoices> {
        self.blas_lt.get()?.choices()
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Makes the device's context current in this thread.
    pub(crate) fn bind(&self) -> Result<()> {
        self.context.bind()
    }

    pub(crate) fn stream(&self) -> sys::CUstream {
        self.context.stream()
    }

    pub(crate) fn check(&self, result: CUresult, what: impl FnOnce() -> String) -> Result<()> {
        self.context.check(result, what)
    }

    /// Copies host bytes to the device without waiting: they are free again when this returns.
    pub(crate) fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.staging.upload(to, bytes)
    }

    /// Copies device memory to the host and waits for it.
    pub(crate) fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.refuse_in_capture(|| format!("copying {} bytes to the host", bytes.len()))?;
        self.bind()?;
        // SAFETY: both sides are that long (the caller's tensor and slice), and the host side outlives the wait below.
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast::<c_void>(), from, bytes.len(), self.stream()) };
        self.check(result, || "copying to the host".into())?;
        self.context.synchronize()
    }
}

/// What `cell` holds, made now if it holds nothing yet. Of two threads that make it, one's is kept.
fn made_once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(made) = cell.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

impl fmt::Display for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.context.name())
    }
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.context.name(), self.info.name)
    }
}
