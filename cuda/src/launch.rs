//! Launching a kernel: source, entry point, defines, arguments, grid.

use bytemuck::Pod;
use cudarc::driver::sys;
use patchgpt_tensor::{DType, Error, Result, Tensor};

use crate::compiler::Function;
use crate::device::Cuda;
use crate::memory::CudaMemory;

/// The text of a kernel file.
#[derive(Debug)]
pub struct KernelSource {
    /// File name without `.cu`; what messages, the cache and `PATCHGPT_KERNEL_DIR` call it.
    pub name: &'static str,
    /// CUDA C++ that includes `prelude.cuh` or, for products of a warp on tensor cores, `tensor_cores.cuh`.
    pub text: &'static str,
    /// Other headers that it includes: name and text.
    pub headers: &'static [(&'static str, &'static str)],
}

/// A [`KernelSource`] of this crate's `kernels/` folder: `kernel_source!("rms_norm")`, or with headers of the same folder
/// `kernel_source!("random", "philox.cuh")`.
macro_rules! kernel_source {
    ($name:literal $(, $header:literal)*) => {
        $crate::launch::KernelSource {
            name: $name,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $name, ".cu")),
            headers: &[$(($header, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $header)))),*],
        }
    };
}
pub(crate) use kernel_source;

/// The value of a macro that specialises a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Define {
    /// An element type, by its name in the prelude: `f32`, `bf16`, ...
    Type(DTypeName),
    /// A number.
    Integer(i64),
    /// A word: the name of a function or a constant.
    Word(&'static str),
}

/// A dtype's name in the prelude.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DTypeName(&'static str);

impl From<DType> for Define {
    fn from(dtype: DType) -> Define {
        Define::Type(DTypeName(dtype.name()))
    }
}

macro_rules! define_from {
    ($($t:ty),*) => { $(impl From<$t> for Define { fn from(x: $t) -> Define { Define::Integer(x as i64) } })* };
}
define_from!(u32, i32, i64, usize, bool);

impl From<&'static str> for Define {
    fn from(word: &'static str) -> Define {
        Define::Word(word)
    }
}

impl std::fmt::Display for Define {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Define::Type(DTypeName(name)) | Define::Word(name) => f.write_str(name),
            Define::Integer(number) => write!(f, "{number}"),
        }
    }
}

/// A kernel file with the values of its macros: what is compiled as one.
#[derive(Clone, Debug)]
pub struct Specialisation {
    /// The file.
    pub source: &'static KernelSource,
    /// The macros, in the order in which the launcher names them.
    pub defines: Vec<(&'static str, Define)>,
}

impl Specialisation {
    /// A file without macros.
    pub fn new(source: &'static KernelSource) -> Specialisation {
        Specialisation { source, defines: Vec::new() }
    }

    /// With one more macro.
    #[must_use]
    pub fn define(mut self, name: &'static str, value: impl Into<Define>) -> Specialisation {
        self.defines.push((name, value.into()));
        self
    }
}

impl std::fmt::Display for Specialisation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.source.name)?;
        for (name, value) in &self.defines {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
}

/// A launch in the making; see the crate's documentation. Mistakes on the way come out of [`Launch::launch`].
#[must_use = "nothing runs before `launch`"]
pub struct Launch<'a> {
    cuda: &'a Cuda,
    entry: &'static str,
    specialisation: Specialisation,
    /// Arguments, each from a multiple of 8 bytes on, and the size of each.
    words: Vec<u64>,
    arguments: Vec<(usize, usize)>,
    grid: [usize; 3],
    threads: usize,
    shared: usize,
    error: Option<Error>,
}

impl Cuda {
    /// Begins a launch of the entry point `entry` of `source`.
    pub fn kernel(&self, source: &'static KernelSource, entry: &'static str) -> Launch<'_> {
        Launch {
            cuda: self,
            entry,
            specialisation: Specialisation::new(source),
            words: Vec::with_capacity(32),
            arguments: Vec::with_capacity(16),
            grid: [1; 3],
            threads: 1,
            shared: 0,
            error: None,
        }
    }
}

impl Launch<'_> {
    /// Defines a macro of the kernel file: `-Dname=value`.
    pub fn define(mut self, name: &'static str, value: impl Into<Define>) -> Self {
        self.specialisation.defines.push((name, value.into()));
        self
    }

    /// Passes a tensor that the kernel reads: the address of its first element.
    pub fn read(self, tensor: &Tensor) -> Self {
        self.tensor(tensor)
    }

    /// Passes a tensor that the kernel writes: the address of its first element.
    pub fn write(self, tensor: &Tensor) -> Self {
        self.tensor(tensor)
    }

    /// As [`Launch::read`]; null for `None`.
    pub fn read_optional(self, tensor: Option<&Tensor>) -> Self {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => self.value(0u64),
        }
    }

    /// As [`Launch::write`]; null for `None`.
    pub fn write_optional(self, tensor: Option<&Tensor>) -> Self {
        self.read_optional(tensor)
    }

    /// Passes the address of memory from [`Cuda::workspace`].
    pub fn workspace(self, memory: &CudaMemory) -> Self {
        let address = memory.address();
        self.value(address)
    }

    /// Passes a number or a `#[repr(C)]` struct of the same size and layout as the kernel's parameter.
    pub fn value<T: Pod>(mut self, value: T) -> Self {
        let bytes = bytemuck::bytes_of(&value);
        self.arguments.push((self.words.len(), bytes.len()));
        let start = self.words.len();
        self.words.resize(start + bytes.len().div_ceil(8), 0);
        bytemuck::cast_slice_mut(&mut self.words[start..])[..bytes.len()].copy_from_slice(bytes);
        self
    }

    fn tensor(mut self, tensor: &Tensor) -> Self {
        match self.cuda.address(tensor) {
            Ok(address) => self.value(address),
            Err(error) => {
                self.error.get_or_insert(error);
                self
            }
        }
    }

    /// The number of blocks along x (at most 2^31 - 1).
    pub fn blocks(self, x: usize) -> Self {
        self.grid(x, 1, 1)
    }

    /// The number of blocks along x (at most 2^31 - 1), y and z (at most 65535).
    pub fn grid(mut self, x: usize, y: usize, z: usize) -> Self {
        self.grid = [x, y, z];
        self
    }

    /// Threads of a block, along x: a multiple of 32, at most what `KERNEL` says.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Bytes of `DYNAMIC_SHARED` memory, at most [`Cuda::shared_memory_per_block`].
    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes;
        self
    }

    /// Compiles the kernel if it is not yet, and starts it on the stream. Nothing runs if a dimension of the grid is 0.
    ///
    /// # Errors
    /// A kernel that does not compile or has no such entry point; arguments whose number or sizes are not the kernel's; a grid, block or
    /// shared memory beyond the device's limits; a device that failed before.
    pub fn launch(mut self) -> Result<()> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if self.grid.contains(&0) {
            return Ok(());
        }
        let function = self.cuda.function(&self.specialisation, self.entry)?;
        self.check(&function)?;
        let mut pointers: Vec<*mut std::ffi::c_void> =
            self.arguments.iter().map(|&(start, _)| (&raw mut self.words[start]).cast()).collect();
        let [x, y, z] = self.grid.map(|n| n as u32);
        self.cuda.bind()?;
        // SAFETY: the function belongs to this device's context; `pointers` holds one pointer per parameter, each to as many bytes as the
        // parameter has (checked above where the driver tells), which the driver copies before it returns.
        let result = unsafe {
            sys::cuLaunchKernel(
                function.raw(),
                x,
                y,
                z,
                self.threads as u32,
                1,
                1,
                self.shared as u32,
                self.cuda.stream(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.cuda.check(result, || format!("the launch of {} from {}", self.entry, self.specialisation))
    }

    /// Holds arguments and sizes against what the kernel and the device take.
    fn check(&self, function: &Function) -> Result<()> {
        let wrong = |message: String| {
            Err(Error::Backend {
                device: self.cuda.to_string(),
                message: format!("the launch of {} from {}: {message}", self.entry, self.specialisation),
            })
        };
        let sizes: Vec<usize> = self.arguments.iter().map(|&(_, size)| size).collect();
        if let Some(expected) = function.parameters()
            && expected != sizes
        {
            return wrong(format!(
                "the kernel takes {} parameters of {expected:?} bytes, the launcher passes {} of {sizes:?}",
                expected.len(),
                sizes.len()
            ));
        }
        let [x, y, z] = self.grid;
        if x > i32::MAX as usize || y > 65535 || z > 65535 {
            return wrong(format!("a grid of {x} x {y} x {z} blocks; at most 2147483647 x 65535 x 65535 are possible"));
        }
        let most = function.threads();
        if self.threads == 0 || !self.threads.is_multiple_of(32) || self.threads > most {
            return wrong(format!("{} threads a block; a multiple of 32 up to {most} is possible", self.threads));
        }
        function.allow_shared(self.cuda, self.shared, self.entry)
    }
}
