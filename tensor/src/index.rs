//! Indices: what is known of their range, so that no kernel needs to check one, and the inverse of an id tensor for scatter-add.
//!
//! Ids come from the host. When they do, their range is taken and stays with the buffer; an op compares it with its bound and
//! need not read anything back from the device.

use crate::{DType, Device, Element, Error, IGNORE_INDEX, Result, Tensor};

/// The smallest and the largest index of a buffer, [`IGNORE_INDEX`] aside; `low > high` if there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct IndexRange {
    low: i64,
    high: i64,
    ignored: bool,
}

impl IndexRange {
    const EMPTY: IndexRange = IndexRange { low: i64::MAX, high: i64::MIN, ignored: false };

    /// The range of host data; `None` for floating-point data.
    pub(crate) fn of_host<E: Element>(data: &[E]) -> Option<IndexRange> {
        match E::DTYPE {
            DType::I32 => Some(IndexRange::of_i32(bytemuck::cast_slice(data))),
            DType::I64 => Some(IndexRange::of(bytemuck::cast_slice::<E, i64>(data).iter().copied())),
            _ => None,
        }
    }

    fn of(indices: impl Iterator<Item = i64>) -> IndexRange {
        indices.fold(IndexRange::EMPTY, |range, i| range.union(IndexRange::one(i)))
    }

    /// The range of a batch's ids, taken at every step: without a branch, so that several are looked at at a time.
    fn of_i32(indices: &[i32]) -> IndexRange {
        let (mut low, mut high, mut ignored) = (i32::MAX, i32::MIN, false);
        for &index in indices {
            let skipped = index == IGNORE_INDEX;
            low = low.min(if skipped { i32::MAX } else { index });
            high = high.max(if skipped { i32::MIN } else { index });
            ignored |= skipped;
        }
        IndexRange { low: low.into(), high: high.into(), ignored }
    }

    /// The range of one index.
    pub(crate) fn one(index: i64) -> IndexRange {
        if index == IGNORE_INDEX as i64 {
            IndexRange { ignored: true, ..IndexRange::EMPTY }
        } else {
            IndexRange { low: index, high: index, ignored: false }
        }
    }

    /// The range of both.
    pub(crate) fn union(self, other: IndexRange) -> IndexRange {
        IndexRange {
            low: self.low.min(other.low),
            high: self.high.max(other.high),
            ignored: self.ignored || other.ignored,
        }
    }
}

/// Checks that `indices` is i32 with every element in `0..bound`, or [`IGNORE_INDEX`] where `ignorable`.
///
/// # Errors
/// Another dtype; an index outside; indices that a kernel has written, whose range is not known.
pub(crate) fn check_indices(op: &'static str, indices: &Tensor, bound: usize, ignorable: bool) -> Result<()> {
    if indices.dtype() != DType::I32 {
        return Err(Error::dtype(op, DType::I32, indices.dtype()));
    }
    if indices.is_empty() {
        return Ok(());
    }
    let fits = |r: IndexRange| r.low > r.high || (r.low >= 0 && (r.high as u64) < bound as u64);
    match indices.buffer().index_range() {
        Some(range) if fits(range) && (ignorable || !range.ignored) => Ok(()),
        None => Err(Error::value(
            op,
            "indices of unknown range: indices are made with Tensor::from_slice, which takes their range",
        )),
        // The buffer may hold more than this view: look at the view itself before refusing.
        Some(_) => {
            let allowed = |i: i32| (0..bound as i64).contains(&(i as i64)) || (ignorable && i == IGNORE_INDEX);
            match indices.to_vec::<i32>()?.into_iter().enumerate().find(|&(_, i)| !allowed(i)) {
                None => Ok(()),
                Some((position, index)) => {
                    Err(Error::Index { op, index: index as i64, position, low: 0, high: bound as i64 })
                }
            }
        }
    }
}

impl Tensor {
    /// Checks that every index of this tensor is in `0..bound`, or [`IGNORE_INDEX`] where `ignorable`, as ops do that read indices: what comes
    /// from the host is known by its range, and nothing is read back. For indices that are written again between replays of a [`Graph`](crate::Graph),
    /// which runs no checks.
    ///
    /// # Errors
    /// An index outside; another dtype than i32; indices that a kernel has written.
    pub fn check_indices(&self, op: &'static str, bound: usize, ignorable: bool) -> Result<()> {
        check_indices(op, self, bound, ignorable)
    }
}

/// The inverse of an id tensor in compressed-row form: the positions at which each id stands.
///
/// With it a scatter-add becomes a gather in a fixed order, so that it needs no atomics and is deterministic. Its shape depends
/// on the number of positions and the vocabulary only.
#[derive(Clone, Debug)]
pub struct ScatterIndex {
    order: Tensor,
    offsets: Tensor,
}

impl ScatterIndex {
    /// Inverts `ids`, each in `0..vocabulary`, by a counting sort.
    ///
    /// # Errors
    /// An id outside `0..vocabulary`.
    ///
    /// ```
    /// use patchgpt_tensor::{Device, ScatterIndex};
    /// # fn main() -> patchgpt_tensor::Result<()> {
    /// let index = ScatterIndex::new(&[2, 0, 2], 4, &Device::cpu()?)?;
    /// assert_eq!(index.order().to_vec::<i32>()?, [1, 0, 2]);
    /// assert_eq!(index.offsets().to_vec::<i32>()?, [0, 1, 1, 3, 3]);
    /// # Ok(()) }
    /// ```
    pub fn new(ids: &[i32], vocabulary: usize, device: &Device) -> Result<ScatterIndex> {
        let op = "scatter_index";
        if let Some((position, &id)) = ids.iter().enumerate().find(|&(_, &id)| id < 0 || id as usize >= vocabulary) {
            return Err(Error::Index { op, index: id as i64, position, low: 0, high: vocabulary as i64 });
        }
        let mut offsets = vec![0i32; vocabulary + 1];
        for &id in ids {
            offsets[id as usize + 1] += 1;
        }
        for v in 0..vocabulary {
            offsets[v + 1] += offsets[v];
        }
        let mut next = offsets.clone();
        let mut order = vec![0i32; ids.len()];
        for (position, &id) in ids.iter().enumerate() {
            order[next[id as usize] as usize] = position as i32;
            next[id as usize] += 1;
        }
        ScatterIndex::from_parts(&order, &offsets, device)
    }

    /// An index that a loader has computed: `order` the positions sorted by id and, within an id, ascending; positions of id v are
    /// `order[offsets[v]..offsets[v + 1]]`.
    ///
    /// # Errors
    /// `offsets` that do not ascend from 0 to the number of positions; positions outside `0..order.len()`.
    pub fn from_parts(order: &[i32], offsets: &[i32], device: &Device) -> Result<ScatterIndex> {
        ScatterIndex::check(order, offsets)?;
        Ok(ScatterIndex {
            order: Tensor::from_slice(order, &[order.len()], device)?,
            offsets: Tensor::from_slice(offsets, &[offsets.len()], device)?,
        })
    }

    /// Checks the parts of an index on the host, as [`ScatterIndex::from_parts`] does.
    ///
    /// # Errors
    /// As [`ScatterIndex::from_parts`].
    pub fn check(order: &[i32], offsets: &[i32]) -> Result<()> {
        let op = "scatter_index";
        // Looked at to the end, without a branch, as above.
        let ascending = offsets.windows(2).fold(true, |ascending, w| ascending & (w[0] <= w[1]));
        if offsets.first() != Some(&0) || !ascending || offsets.last().map(|&o| o as usize) != Some(order.len()) {
            return Err(Error::value(
                op,
                format!("offsets must ascend from 0 to the number of positions, {}", order.len()),
            ));
        }
        let outside = |p: i32| p < 0 || p as usize >= order.len();
        if order.iter().fold(false, |any, &p| any | outside(p))
            && let Some((position, &p)) = order.iter().enumerate().find(|&(_, &p)| outside(p))
        {
            return Err(Error::Index { op, index: p as i64, position, low: 0, high: order.len() as i64 });
        }
        Ok(())
    }

    /// An index in tensors that are written again for every batch: what is written must have passed [`ScatterIndex::check`]; zeros are an index without positions.
    ///
    /// # Errors
    /// Tensors that are not flat, contiguous i32 on one device; no offsets.
    pub fn over(order: Tensor, offsets: Tensor) -> Result<ScatterIndex> {
        for part in [&order, &offsets] {
            if part.dtype() != DType::I32
                || part.rank() != 1
                || !part.is_contiguous()
                || part.device() != order.device()
            {
                return Err(Error::value(
                    "scatter_index",
                    format!("flat, contiguous i32 on one device expected, got {:?} {}", part.layout(), part.dtype()),
                ));
            }
        }
        if offsets.is_empty() {
            return Err(Error::value("scatter_index", "an index has one offset more than ids: at least one"));
        }
        Ok(ScatterIndex { order, offsets })
    }

    /// i32 [positions]: flat positions in the id tensor, sorted by id and, within an id, ascending.
    pub fn order(&self) -> &Tensor {
        &self.order
    }

    /// i32 [vocabulary + 1]: positions of id v are `order[offsets[v]..offsets[v + 1]]`.
    pub fn offsets(&self) -> &Tensor {
        &self.offsets
    }

    /// Number of positions in the id tensor.
    pub fn positions(&self) -> usize {
        self.order.len()
    }

    /// Number of ids.
    pub fn vocabulary(&self) -> usize {
        self.offsets.len() - 1
    }
}
