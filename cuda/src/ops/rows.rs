//! How launchers take tensors as rows: where rows lie, how many neighbours one access moves, how the threads of a block share rows.

use patchgpt_tensor::{DType, Error, Result, Tensor};

use crate::device::Cuda;
use crate::launch::{Define, KernelSource, Specialisation};
use crate::strided::Strided;
use crate::variants::Variant;

/// Bytes that one access moves at most.
const ACCESS: usize = 16;
/// Threads of a block that walks over all elements of a tensor.
pub(crate) const ELEMENTWISE: usize = 256;
/// Blocks of such a grid at most; threads then take several packs.
const MOST_BLOCKS: usize = 1 << 22;

/// A tensor as `count` rows of `width` neighbours, `stride` elements apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) count: usize,
    pub(crate) width: usize,
    pub(crate) stride: usize,
}

impl Rows {
    /// # Errors
    /// Rows that are not one stride apart.
    pub(crate) fn of(op: &'static str, tensor: &Tensor) -> Result<Rows> {
        let wrong = || Error::shape(op, format!("rows one stride apart expected, got {:?}", tensor.layout()));
        let lead = tensor.rank().checked_sub(1).ok_or_else(wrong)?;
        let rows = Strided::new(&tensor.shape()[..lead], [&tensor.strides()[..lead]]);
        if rows.rank > 1 {
            return Err(wrong());
        }
        Ok(Rows { count: rows.count as usize, width: tensor.dim(lead), stride: rows.strides[0][0] as usize })
    }

    /// Rows of several tensors of one shape; where all are without gaps, one long row.
    pub(crate) fn merged<const N: usize>(op: &'static str, tensors: [&Tensor; N]) -> Result<[Rows; N]> {
        let mut rows = [Rows { count: 0, width: 0, stride: 0 }; N];
        for (rows, tensor) in rows.iter_mut().zip(tensors) {
            *rows = Rows::of(op, tensor)?;
        }
        if tensors.iter().all(|t| t.is_contiguous()) {
            rows.iter_mut().for_each(|r| *r = Rows { count: 1, width: r.count * r.width, stride: r.count * r.width });
        }
        Ok(rows)
    }
}

/// Elements of `x` in an access of 16 bytes.
pub(crate) fn full_pack(x: DType) -> usize {
    ACCESS / x.size()
}

/// Elements of `x` that one access moves: 16 bytes if `width` is a multiple and the first element and every stride but the last
/// of all operands lie at multiples of 16 bytes, else one element.
pub(crate) fn pack(cuda: &Cuda, x: DType, width: usize, operands: &[&Tensor]) -> Result<usize> {
    let full = full_pack(x);
    if !width.is_multiple_of(full) {
        return Ok(1);
    }
    for tensor in operands {
        let lead = tensor.rank().saturating_sub(1);
        let bytes = |stride: usize| stride * tensor.dtype().size();
        let whole = width == tensor.len() // one row, whatever its shape
            || (0..lead).all(|d| tensor.dim(d) <= 1 || bytes(tensor.strides()[d]).is_multiple_of(ACCESS));
        if !whole || !is_aligned(cuda, tensor)? {
            return Ok(1);
        }
    }
    Ok(full)
}

/// Operands of one shape, walked in packs of at most 16 bytes where their strides and addresses allow, and the elements of a pack.
pub(crate) fn packed<const N: usize>(cuda: &Cuda, operands: [&Tensor; N]) -> Result<(Strided<N>, usize)> {
    let walk = Strided::of(operands);
    let widest = operands.iter().map(|t| t.dtype().size()).max().unwrap_or(1);
    let pack = ACCESS / widest;
    let Some(packs) = walk.in_packs(pack) else { return Ok((walk, 1)) };
    for (n, tensor) in operands.iter().enumerate() {
        let repeats = walk.strides[n][walk.rank as usize - 1] == 0;
        let access = (pack * tensor.dtype().size()) as u64;
        if !repeats && !cuda.address(tensor)?.is_multiple_of(access) {
            return Ok((walk, 1));
        }
    }
    Ok((packs, pack))
}

/// Whether a tensor's first element lies at a multiple of 16 bytes.
pub(crate) fn is_aligned(cuda: &Cuda, tensor: &Tensor) -> Result<bool> {
    Ok(cuda.address(tensor)?.is_multiple_of(ACCESS as u64))
}

/// Blocks of [`ELEMENTWISE`] threads for so many packs.
pub(crate) fn elementwise_blocks(packs: usize) -> usize {
    packs.div_ceil(ELEMENTWISE).min(MOST_BLOCKS)
}

/// How a block shares rows: `threads` for each of `flight` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowThreads {
    pub(crate) threads: usize,
    pub(crate) flight: usize,
}

impl RowThreads {
    /// For `rows` rows of `packs` packs, some four packs a thread; blocks of `least` (if there are as many rows) to `most` threads.
    pub(crate) fn new(rows: usize, packs: usize, least: usize, most: usize) -> RowThreads {
        let threads = packs.div_ceil(4).next_multiple_of(32).clamp(32, most);
        RowThreads { threads, flight: (least / threads).clamp(1, rows.max(1)) }
    }

    /// Threads of a block.
    pub(crate) fn block(self) -> usize {
        self.threads * self.flight
    }

    /// Blocks for all rows.
    pub(crate) fn blocks(self, rows: usize) -> usize {
        rows.div_ceil(self.flight)
    }
}

/// Threads of a kernel that sweeps over rows, some four packs a thread.
pub(crate) fn row_threads(rows: usize, packs: usize) -> RowThreads {
    RowThreads::new(rows, packs, 256, 512)
}

/// Where rows are between one sweep over them and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowCache {
    /// In shared memory, if a block can have so much.
    Shared,
    /// Where they come from.
    None,
}

impl RowCache {
    /// Dynamic shared memory for `bytes` of rows, or `None`.
    pub(crate) fn shared(self, cuda: &Cuda, bytes: usize) -> Option<usize> {
        match self {
            RowCache::Shared => shared_if_fits(cuda, bytes),
            RowCache::None => None,
        }
    }
}

/// How a norm of rows is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Norm {
    /// By a kernel that sweeps over rows more than once.
    Swept(RowCache),
    /// Out of element-wise kernels and reductions.
    Composed,
}

/// The variants of every norm; the first computes unless one is chosen by name.
pub(crate) const NORMS: &[Variant<Norm>; 3] = &[
    Variant {
        name: "cached",
        about: "rows stay in shared memory between the sweeps where they fit",
        implementation: Norm::Swept(RowCache::Shared),
    },
    Variant {
        name: "streamed",
        about: "every sweep reads rows from memory, and no block takes shared memory for them",
        implementation: Norm::Swept(RowCache::None),
    },
    Variant {
        name: "composed",
        about: "element-wise kernels and reductions, one pass over memory each",
        implementation: Norm::Composed,
    },
];

/// Dynamic shared memory for `bytes` if a block can have so much beside what kernels over rows have fixed, else `None`.
pub(crate) fn shared_if_fits(cuda: &Cuda, bytes: usize) -> Option<usize> {
    /// Sums of warps, two values of f64 for 32 warps; and 1 KiB that the driver keeps of each block.
    const FIXED: usize = 2 * 32 * 8 + 1024;
    (bytes + FIXED <= cuda.shared_memory_per_block()).then_some(bytes)
}

/// What a launch of a kernel that names dynamic shared memory asks for, also where it uses none of it.
pub(crate) fn shared_bytes(wanted: Option<usize>) -> usize {
    wanted.unwrap_or(0).max(ACCESS)
}

/// Column sums that blocks take over their rows and a further launch adds in order: the gradients of a norm's weight and bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partials {
    pub(crate) blocks: usize,
    pub(crate) rows_per_block: usize,
    pub(crate) threads: RowThreads,
    /// Bytes of shared memory; `None` if sums and rows do not fit, and one row is in flight.
    pub(crate) shared: Option<usize>,
    width: usize,
}

impl Partials {
    /// Blocks, whatever the device: what large cards need to be busy. The partial rows are a few percent of the traffic of as many rows as
    /// a training step has.
    const BLOCKS: usize = 256;

    /// For `sums` sums of every column of `rows`, which stand beside two cached rows of x's dtype.
    pub(crate) fn new(cuda: &Cuda, x: &Tensor, rows: Rows, packs: usize, sums: usize, cache: RowCache) -> Partials {
        let acc = x.dtype().accumulator().size();
        let mut threads = row_threads(rows.count.div_ceil(Self::BLOCKS), packs);
        let shared = cache.shared(cuda, threads.flight * rows.width * (sums * acc + 2 * x.dtype().size()));
        if shared.is_none() {
            threads.flight = 1;
        }
        let rows_per_block = rows.count.div_ceil(Self::BLOCKS).next_multiple_of(threads.flight).max(1);
        // No rows at all still make a block, whose sums are zero.
        let blocks = rows.count.div_ceil(rows_per_block).max(1);
        Partials { blocks, rows_per_block, threads, shared, width: rows.width }
    }

    /// Memory for one sum of every block.
    pub(crate) fn empty(&self, x: &Tensor) -> Result<Tensor> {
        Tensor::empty(&[self.blocks, self.width], x.dtype().accumulator(), x.device())
    }
}

/// The element types and packs that tests run kernels over rows with.
pub(crate) fn variants() -> impl Iterator<Item = (DType, usize)> {
    [DType::F32, DType::BF16].into_iter().flat_map(|x| [(x, full_pack(x)), (x, 1)])
}

/// `source` with X and PACK for each of [`variants`].
pub(crate) fn specialisations(source: &'static KernelSource) -> Vec<Specialisation> {
    variants().map(|(x, pack)| Specialisation::new(source).define("X", x).define("PACK", pack)).collect()
}

/// `source` with X and PACK for each of [`variants`], and `name` of the type X or f32.
pub(crate) fn specialisations_with(source: &'static KernelSource, name: &'static str) -> Vec<Specialisation> {
    specialisations(source)
        .into_iter()
        .flat_map(|s| {
            let x = s.defines[0].1;
            let mut types = vec![x, Define::from(DType::F32)];
            types.dedup();
            types.into_iter().map(move |t| s.clone().define(name, t))
        })
        .collect()
}

/// Refuses element types that no kernel computes in.
pub(crate) fn floating(op: &'static str, x: DType) -> Result<()> {
    match x {
        DType::F32 | DType::BF16 | DType::F64 => Ok(()),
        other => Err(Error::dtype(op, "f32, bf16 or f64", other)),
    }
}
