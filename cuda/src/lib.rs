//! The CUDA backend of patchgpt: own kernels, compiled at run time for the card at hand, and an emulator that runs the same
//! kernels and the same launch code on a CPU.
//!
//! One binary serves machines with and without CUDA: driver, NVRTC, cuBLAS and cuBLASLt are loaded at run time, and what is missing is named by an
//! error or by [`probe`], never by a panic.
//!
//! # A kernel
//! A kernel file, `kernels/<op>.cu`, includes `prelude.cuh` (`tensor_cores.cuh` for a warp's matrix products) and nothing of NVIDIA's. It declares entry points with `KERNEL(name, threads, parameters...)`,
//! shared memory with `SHARED` and `DYNAMIC_SHARED`, and waits for its block with `sync_block()`. It is specialised by macros that the
//! launcher defines: element types (`X`, `OUT`), head sizes, tile sizes. So this,
//!
//! ```c++
//! #include "prelude.cuh"
//! /// out = factor * x. X, OUT: element types. One element a thread.
//! KERNEL(scale, 256, OUT *out, const X *x, f32 factor, u64 count) {
//!     u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
//!     if (i < count) out[i] = round_to<OUT>(factor * to_f32(x[i]));
//! }
//! ```
//!
//! is launched from `src/ops/<op>.rs` by
//!
//! ```ignore
//! const SOURCE: KernelSource = kernel_source!("scale"); // a `static`, not a `const`
//! cuda.kernel(&SOURCE, "scale")
//!     .define("X", x.dtype())
//!     .define("OUT", out.dtype())
//!     .write(out)          // parameters in the kernel's order: a tensor's address (its offset included),
//!     .read(x)
//!     .value(2.0f32)       // a number, or a #[repr(C)] Pod struct such as [`Strided`], by value
//!     .value(x.len() as u64)
//!     .blocks(x.len().div_ceil(256))
//!     .threads(256)
//!     .shared(0)           // bytes of DYNAMIC_SHARED memory
//!     .launch()?;
//! ```
//!
//! The number and sizes of the arguments are held against the kernel's parameters; a grid with a dimension of 0 launches nothing. Scratch memory comes from
//! [`Cuda::workspace`] and is passed with `.workspace(&memory)`; it may be dropped right after the launch, since the device frees it
//! in the stream's order. Optional tensors pass as null with `read_optional` and `write_optional`.
//!
//! Rules that keep results the same on every run and device: no atomics on floats, sums in an order that shapes alone decide (the number of
//! multiprocessors may set how many blocks share the work, never how it is cut), statistics in f32. Sizes are `u32` in a kernel where the
//! launcher has checked that they fit, offsets in elements `u64`. 16-byte accesses (`load_pack`, `store_pack`) only where addresses *and* row strides are
//! multiples of 16 bytes: the launcher decides by [`Cuda::aligned`] and passes it as a macro.
//!
//! Blocks are one-dimensional (`.threads(n)`), warps are rows of 32 of them. Emulated, threads are fibers that switch only at barriers, warp functions and the ends
//! of copies, warps run in a random order, shared and fresh memory hold NaN (every byte 0xff), and each launch is one of many schedules (`PATCHGPT_EMULATOR_SEED`).
//!
//! # Recorded work
//! [`Device::capture`](patchgpt_tensor::Device::capture) records launches, copies and fills as a CUDA graph. A replay runs none of the launcher's code: what is passed by value stays as it was recorded, so a number that
//! changes between replays is read from memory. Tensors and workspaces that are made meanwhile lie in one block that belongs to the graph; other memory that
//! it names is kept as long as the graph. Waiting for the device, transfers between it and the host, and loading a kernel cannot be recorded, which is why the same work runs once before
//! ([`Device::rehearse`](patchgpt_tensor::Device::rehearse)).
//!
//! # Errors
//! Everything is a [`patchgpt_tensor::Error`]; what a device reports is [`Error::Backend`](patchgpt_tensor::Error::Backend) with what was being done. A launch that fails on the device is reported
//! by the next call that waits, as CUDA does; emulated, with kernel, block, thread and reason.

mod backend;
mod blas;
mod blas_lt;
mod cache;
mod capture;
mod compiler;
mod device;
mod emulator;
mod error;
mod launch;
mod limits;
mod memory;
mod ops;
mod probe;
mod staging;
mod strided;
mod tensor_map;
mod variants;

pub use blas_lt::GemmChoices;
pub use compiler::{Compiled, compile};
pub use device::Cuda;
pub use emulator::{address_sanitizer, emulator_compiler};
pub use launch::{Define, KernelSource, Launch, Specialisation};
pub use memory::CudaMemory;
pub use ops::specialisations;
pub use probe::{DeviceInfo, Library, Probe, probe};
pub use strided::Strided;
pub use tensor_map::TensorMap;
pub use variants::{FAMILIES, Family, check_kernel};

use patchgpt_tensor::{LogitChunk, MemoryModel};

/// How a card with so many bytes of memory takes it: for plans made where no card is.
pub fn memory_model(memory: usize) -> MemoryModel {
    of_logits(ops::linear_cross_entropy::of_card(memory))
}

/// How the emulated device takes memory.
pub fn emulated_memory_model() -> MemoryModel {
    of_logits(ops::linear_cross_entropy::EMULATED)
}

fn of_logits(logits: LogitChunk) -> MemoryModel {
    MemoryModel {
        // The driver's pool hands out sizes as they are asked for.
        allocation: |bytes| bytes,
        logits,
        widens_head: false,
        constant: blas::WORKSPACE_BYTES,
        graphs: true,
        searches: false,
    }
}
