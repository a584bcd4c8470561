//! AdamW over flat storage, one launch. Bytes: 28 a parameter in f32 (four reads, three writes), 30 with a rounded copy. FLOPs: about 15.

use bytemuck::{Pod, Zeroable};
use patchgpt_tensor::{AdamW, DType, Error, Result, Rounding};

use super::composed;
use super::rows::{ELEMENTWISE, elementwise_blocks, full_pack, is_aligned};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};
use crate::variants::{Family, Variant, names};

type Implementation = fn(&Cuda, &AdamW) -> Result<()>;

/// The implementations; the first computes unless one is chosen by name. One row adds another.
const VARIANTS: &[Variant<Implementation>; 2] = &[
    Variant { name: "fused", about: "one kernel", implementation: fused },
    Variant {
        name: "composed",
        about: "element-wise kernels, one pass over memory each; rounds to nearest only",
        implementation: composed::adamw,
    },
];

/// The names, for [`Cuda::with_kernel`].
pub(crate) const FAMILY: Family = Family { name: "adamw", variants: &names(VARIANTS) };

static SOURCE: KernelSource = kernel_source!("adamw", "rows.cuh", "philox.cuh");

/// Blocks that a multiprocessor holds.
const BLOCKS_EACH: usize = 4;

pub(crate) fn specialisations() -> Vec<Specialisation> {
    [4, 1].map(|pack| Specialisation::new(&SOURCE).define("X", DType::F32).define("PACK", pack)).into()
}

/// Constants of the run; `Settings` in the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Settings {
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    decay_len: i64,
}

// SAFETY: numbers of 8 bytes for which zero is a value.
unsafe impl Zeroable for Settings {}
// SAFETY: repr(C) of numbers of 8 bytes, so without padding; Copy and 'static.
unsafe impl Pod for Settings {}

/// See [`Backend::adamw`](patchgpt_tensor::Backend::adamw).
pub(crate) fn adamw(cuda: &Cuda, args: &AdamW) -> Result<()> {
    match args.parameters.dtype() {
        DType::F32 | DType::F64 => cuda.variant(&FAMILY, VARIANTS)(cuda, args),
        other => Err(Error::dtype("adamw", "f32 or f64", other)),
    }
}

fn fused(cuda: &Cuda, args: &AdamW) -> Result<()> {
    let x = args.parameters.dtype();
    let mut pack = full_pack(x);
    let rounded = args.rounded.map(|r| r.tensor);
    let seed = match args.rounded.map(|r| r.rounding) {
        Some(Rounding::Stochastic { seed }) => Some(seed),
        Some(Rounding::Nearest) | None => None,
    };
    for tensor in [args.parameters, args.gradients, args.first_moment, args.second_moment].into_iter().chain(rounded) {
        pack = if is_aligned(cuda, tensor)? { pack } else { 1 };
    }
    let count = args.parameters.len();
    // Blocks that stay, since each first works out the step's constants.
    let blocks = elementwise_blocks(count.div_ceil(pack)).min(BLOCKS_EACH * cuda.multiprocessors());
    cuda.kernel(&SOURCE, "adamw")
        .define("X", x)
        .define("PACK", pack)
        .write(args.parameters)
        .read(args.gradients)
        .write(args.first_moment)
        .write(args.second_moment)
        .read(args.learning_rate)
        .read(args.clip)
        .read(args.step)
        .value(Settings {
            beta1: args.beta1,
            beta2: args.beta2,
            eps: args.eps,
            weight_decay: args.weight_decay,
            decay_len: args.decay_len as i64,
        })
        .write_optional(rounded)
        .value(i32::from(seed.is_some()))
        .value(seed.unwrap_or(0))
        .value(count as i64)
        .blocks(blocks)
        .threads(ELEMENTWISE)
        .launch()
}
