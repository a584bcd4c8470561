//! A device is a shared handle to a [`Backend`]; a buffer is typed, versioned memory on it.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::cpu::Cpu;
use crate::index::IndexRange;
use crate::profile::Profiler;
use crate::{Backend, DType, Error, Result};

/// Where tensors live and are computed with. Cheap to clone; two handles are the same device if they share a backend.
#[derive(Clone)]
pub struct Device(Arc<dyn Backend>);

impl Device {
    /// The CPU with one thread per core.
    ///
    /// # Errors
    /// `PATCHGPT_CPU` names an instruction path that is unknown or that this machine lacks; threads cannot be started.
    pub fn cpu() -> Result<Device> {
        Device::cpu_with_threads(std::thread::available_parallelism().map_or(1, |n| n.get()))
    }

    /// The CPU with `threads` threads. Results do not depend on the number.
    ///
    /// # Errors
    /// As [`Device::cpu`], and `threads` of 0.
    pub fn cpu_with_threads(threads: usize) -> Result<Device> {
        Ok(Device::new(Arc::new(Cpu::new(threads)?)))
    }

    /// A device over any backend.
    pub fn new(backend: Arc<dyn Backend>) -> Device {
        Device(backend)
    }

    /// The backend's primitives.
    pub fn backend(&self) -> &dyn Backend {
        &*self.0
    }

    /// The backend as the concrete type `B`, for an op from outside that launches its own kernels; `None` if it is another. Sees
    /// through a [`Profiler`] to the backend that it measures.
    pub fn downcast<B: Backend>(&self) -> Option<&B> {
        let any: &dyn Any = &*self.0;
        any.downcast_ref().or_else(|| any.downcast_ref::<Profiler>()?.measured().downcast())
    }

    /// Waits until everything asked of the device is done.
    pub fn synchronize(&self) -> Result<()> {
        self.0.synchronize()
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.name())
    }
}

/// A backend's memory block; a backend downcasts it to its own type.
pub trait Memory: Any + Send + Sync {}

/// Typed memory on a device, shared by the tensors that view it.
///
/// Every write bumps the version, so that whoever saved a view can tell whether it still holds what it held.
pub struct Buffer {
    device: Device,
    dtype: DType,
    len: usize,
    version: AtomicU64,
    memory: Box<dyn Memory>,
    range: Mutex<Option<IndexRange>>,
}

impl Buffer {
    /// Fresh memory for `len` elements. Its contents are unspecified (but initialised).
    pub(crate) fn allocate(device: &Device, dtype: DType, len: usize) -> Result<Arc<Buffer>> {
        let bytes = len.checked_mul(dtype.size()).ok_or_else(|| Error::OutOfMemory {
            device: device.to_string(),
            bytes: usize::MAX,
            held: 0,
            detail: String::new(),
        })?;
        let memory = device.backend().allocate(bytes)?;
        Ok(Arc::new(Buffer {
            device: device.clone(),
            dtype,
            len,
            version: AtomicU64::new(0),
            memory,
            range: Mutex::new(None),
        }))
    }

    /// The device that owns the memory.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How often the buffer has been written.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The backend's memory as its concrete type; `None` if it is of another backend.
    pub fn memory<M: Memory>(&self) -> Option<&M> {
        let any: &dyn Any = &*self.memory;
        any.downcast_ref()
    }

    /// What is known of the indices in an integer buffer: everything in it came from the host or from a buffer so known.
    pub(crate) fn index_range(&self) -> Option<IndexRange> {
        *self.range.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn set_index_range(&self, range: Option<IndexRange>) {
        *self.range.lock().unwrap_or_else(|e| e.into_inner()) = range;
    }

    pub(crate) fn bump(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }
}
