//! Sums and maxima over any dimensions. Bytes: one read of x, one write of the outputs. FLOPs: 1 an element of x.
//!
//! A long reduction with few outputs is cut into splits, whose results are reduced by a further launch; where cuts fall depends on
//! shapes and strides alone.

use bytemuck::{Pod, Zeroable};
use patchgpt_tensor::{Destination, Reduction, Result, Tensor};

use super::rows::{RowThreads, floating, full_pack, is_aligned, specialisations_with};
use crate::device::Cuda;
use crate::launch::{KernelSource, Specialisation, kernel_source};
use crate::strided::Strided;

static SOURCE: KernelSource = kernel_source!("reduce", "rows.cuh", "strided.cuh");

/// Packs that one split of `reduce_rows` reduces at least, splits at most, and outputs that need none.
const ROW_CHUNK: usize = 2048;
const MOST_SPLITS: usize = 1024;
/// Outputs in packs and threads of a block of `reduce_columns`; rows that a split reduces at least, and the blocks that are enough.
const COLUMNS: usize = 32;
const COLUMN_THREADS: usize = 256;
const COLUMN_CHUNK: usize = 256;
const ENOUGH_BLOCKS: usize = 512;

pub(crate) fn specialisations() -> Vec<Specialisation> {
    specialisations_with(&SOURCE, "OUT")
}

/// See [`Backend::reduce`](patchgpt_tensor::Backend::reduce).
pub(crate) fn reduce(cuda: &Cuda, out: Destination, op: Reduction, x: &Tensor) -> Result<()> {
    floating("reduce", x.dtype())?;
    let t = out.tensor;
    if t.is_empty() {
        return Ok(());
    }
    let (reduced, kept): (Vec<usize>, Vec<usize>) = (0..x.rank()).partition(|&d| t.dim(d) == 1 && x.dim(d) != 1);
    let pick = |dims: &[usize], from: &[usize]| dims.iter().map(|&d| from[d]).collect::<Vec<_>>();
    let kept_walk = Strided::new(&pick(&kept, x.shape()), [&pick(&kept, t.strides()), &pick(&kept, x.strides())]);
    let reduced_walk = Strided::new(&pick(&reduced, x.shape()), [&pick(&reduced, x.strides())]);
    run(cuda, out, op == Reduction::Max, x, kept_walk, reduced_walk)
}

/// Adds or writes the sums of the columns of the contiguous `partials` [rows, width] to the contiguous `out`.
pub(super) fn sum_columns(cuda: &Cuda, out: Destination, partials: &Tensor) -> Result<()> {
    let width = partials.dim(1);
    let kept = Strided::new(&[width], [&[1], &[1]]);
    let reduced = Strided::new(&[partials.dim(0)], [&[width]]);
    if out.tensor.is_empty() { Ok(()) } else { run(cuda, out, false, partials, kept, reduced) }
}

/// Which entries of the reduction a block takes and where results go; `Split` in the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Split {
    chunk: i64,
    out_stride: i64,
}

// SAFETY: two i64.
unsafe impl Zeroable for Split {}
// SAFETY: repr(C) of two i64, so without padding; Copy and 'static.
unsafe impl Pod for Split {}

/// `kept`: outputs, with strides of out and of x; `reduced`: what is reduced for each, with strides of x.
fn run(cuda: &Cuda, out: Destination, maximum: bool, x: &Tensor, kept: Strided<2>, reduced: Strided<1>) -> Result<()> {
    let innermost = |strides: &[u64], rank: u64| strides[rank as usize - 1];
    let by_rows = kept.count == 1
        || (reduced.count > 1 && innermost(&reduced.strides[0], reduced.rank) < innermost(&kept.strides[1], kept.rank));
    let pack = full_pack(x.dtype());
    let aligned = is_aligned(cuda, x)?;
    let whole = |strides: &Strided<2>| strides.strides[1].iter().all(|s| s.is_multiple_of(pack as u64));
    // What is walked in packs: the reduced entries by rows, the outputs by columns.
    let (outputs, entries, pack) = match by_rows {
        true => match reduced.in_packs(pack).filter(|_| aligned && (kept.count == 1 || whole(&kept))) {
            Some(packs) => (kept, packs, pack),
            None => (kept, reduced, 1),
        },
        false => match kept.in_packs(pack).filter(|_| aligned && columns_whole(&reduced, pack)) {
            Some(packs) => (packs, reduced, pack),
            None => (kept, reduced, 1),
        },
    };
    let count = entries.count as usize;
    let splits = match by_rows {
        true if outputs.count as usize >= MOST_SPLITS => 1,
        true => count.div_ceil(ROW_CHUNK).clamp(1, MOST_SPLITS),
        false => {
            (ENOUGH_BLOCKS / (outputs.count as usize).div_ceil(COLUMNS)).clamp(1, count.div_ceil(COLUMN_CHUNK).max(1))
        }
    };
    let chunk = count.div_ceil(splits).max(1);
    let splits = count.div_ceil(chunk).max(1);
    let launch = |to: Destination, outputs: Strided<2>, out_stride: usize| -> Result<()> {
        let threads = RowThreads::new(outputs.count as usize, chunk, 128, 512);
        let kernel = cuda
            .kernel(&SOURCE, if by_rows { "reduce_rows" } else { "reduce_columns" })
            .define("X", x.dtype())
            .define("PACK", pack)
            .define("OUT", to.tensor.dtype())
            .write(to.tensor)
            .read(x)
            .value(outputs)
            .value(entries)
            .value(Split { chunk: chunk as i64, out_stride: out_stride as i64 });
        let kernel = if by_rows { kernel.value(threads.threads as u32) } else { kernel };
        let kernel = kernel.value(i32::from(maximum)).value(i32::from(to.accumulate));
        match by_rows {
            true => kernel.grid(threads.blocks(outputs.count as usize), splits, 1).threads(threads.block()),
            false => kernel.grid((outputs.count as usize).div_ceil(COLUMNS), splits, 1).threads(COLUMN_THREADS),
        }
        .launch()
    };
    if splits == 1 {
        return launch(out, outputs, 0);
    }
    // Partial results: by rows those of an output side by side, by columns those of a split.
    let each = kept.count as usize;
    let (unit, out_stride) = if by_rows { (splits, 1) } else { (1, each) };
    let partials = Tensor::empty(&[each * splits], x.dtype().accumulator(), x.device())?;
    let places = row_major(&kept, unit);
    let mut to_partials = outputs;
    to_partials.strides[0] = row_major(&outputs, if by_rows { unit } else { pack });
    launch(Destination::write(&partials), to_partials, out_stride)?;
    let mut kept = kept;
    kept.strides[1] = places;
    let stride = if by_rows { 1 } else { each };
    run(cuda, out, maximum, &partials, kept, Strided::new(&[splits], [&[stride]]))
}

/// Whether the reduced entries leave a pack of outputs aligned.
fn columns_whole(reduced: &Strided<1>, pack: usize) -> bool {
    reduced.count <= 1 || reduced.strides[0].iter().all(|s| s.is_multiple_of(pack as u64))
}

/// Row-major strides over the shape of `walk`, its last dimension's entries `unit` apart.
fn row_major<const N: usize>(walk: &Strided<N>, unit: usize) -> [u64; patchgpt_tensor::MAX_RANK] {
    let mut strides = [0; patchgpt_tensor::MAX_RANK];
    let mut stride = unit as u64;
    for d in (0..walk.rank as usize).rev() {
        strides[d] = stride;
        stride *= walk.shape[d];
    }
    strides
}
