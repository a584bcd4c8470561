//! Strided copy and cast. Bytes: one read and one write of every element, also where neighbours of one side are far apart on the other.

use patchgpt_tensor::{DType, Result, Tensor};

use super::fill::word;
use super::rows::{ELEMENTWISE, elementwise_blocks, packed};
use crate::device::Cuda;
use crate::launch::{Define, KernelSource, Specialisation, kernel_source};
use crate::strided::Strided;

static SOURCE: KernelSource = kernel_source!("copy", "strided.cuh");

/// Side of a tile of `copy_transposed`, and the smallest side of a matrix that is worth tiles.
const TILE: usize = 32;
const WORTH_A_TILE: u64 = 8;

/// Moves, and the casts of training, of checkpoints and of ids; the other casts differ from these in a conversion alone.
pub(crate) fn specialisations() -> Vec<Specialisation> {
    use DType::{BF16, F16, F32, F64, I32, I64};
    let moves = [BF16, F32, F64].map(|x| (x, x));
    let casts =
        [(F32, BF16), (BF16, F32), (F32, F16), (F16, F32), (F32, F64), (F64, F32), (F64, BF16), (I32, I64), (I64, I32)];
    moves
        .into_iter()
        .chain(casts)
        .flat_map(|(from, to)| [16 / from.size().max(to.size()), 1].map(|pack| (from, to, pack)))
        .map(|(from, to, pack)| {
            let (from, to) = names(from, to);
            Specialisation::new(&SOURCE).define("FROM", from).define("TO", to).define("PACK", pack)
        })
        .collect()
}

/// See [`Backend::copy`](patchgpt_tensor::Backend::copy).
pub(crate) fn copy(cuda: &Cuda, out: &Tensor, x: &Tensor) -> Result<()> {
    let (from, to) = names(x.dtype(), out.dtype());
    let (walk, pack) = packed(cuda, [out, x])?;
    if let Some(matrix) = Transposed::of(&walk).filter(|_| pack == 1 && !out.is_empty()) {
        let tiles = matrix.rows.div_ceil(TILE) * matrix.columns.div_ceil(TILE);
        return cuda
            .kernel(&SOURCE, "copy_transposed")
            .define("FROM", from)
            .define("TO", to)
            .define("PACK", 1)
            .write(out)
            .read(x)
            .value(matrix.rest)
            .value(matrix.rows as i64)
            .value(matrix.columns as i64)
            .value(matrix.out_stride as i64)
            .value(matrix.x_stride as i64)
            .blocks(tiles * matrix.rest.count as usize)
            .threads(TILE * 8)
            .launch();
    }
    cuda.kernel(&SOURCE, "copy")
        .define("FROM", from)
        .define("TO", to)
        .define("PACK", pack)
        .write(out)
        .read(x)
        .value(walk)
        .blocks(elementwise_blocks(walk.count as usize))
        .threads(ELEMENTWISE)
        .launch()
}

/// Names of the element types in the kernel.
fn names(from: DType, to: DType) -> (Define, Define) {
    match from == to {
        true => (word(from).into(), word(to).into()),
        false => (from.into(), to.into()),
    }
}

/// A matrix whose neighbours lie along its rows in out and along its columns in x; `rest` are the other dimensions.
struct Transposed {
    rest: Strided<2>,
    rows: usize,
    columns: usize,
    out_stride: usize,
    x_stride: usize,
}

impl Transposed {
    fn of(walk: &Strided<2>) -> Option<Transposed> {
        let rank = walk.rank as usize;
        let last = rank - 1;
        let [out, x] = &walk.strides;
        let large = |d: usize| walk.shape[d] >= WORTH_A_TILE;
        let across = (0..last).find(|&d| x[d] == 1 && large(d))?;
        if out[last] != 1 || x[last] <= 1 || !large(last) {
            return None;
        }
        let others: Vec<usize> = (0..last).filter(|&d| d != across).collect();
        let pick = |from: &[u64]| others.iter().map(|&d| from[d] as usize).collect::<Vec<_>>();
        Some(Transposed {
            rest: Strided::new(&pick(&walk.shape), [&pick(out), &pick(x)]),
            rows: walk.shape[across] as usize,
            columns: walk.shape[last] as usize,
            out_stride: out[across] as usize,
            x_stride: x[last] as usize,
        })
    }
}
