//! Where the elements of a view lie in its buffer: element (i0, i1, ...) at `offset + sum_d i_d * stride_d`.
//!
//! Shapes and strides are counted in elements and stored inline, so that a view costs no allocation.

use crate::{Error, Result};

/// The largest number of dimensions of a tensor.
pub const MAX_RANK: usize = 8;

/// Shape, strides and offset of a view, in elements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    rank: usize,
    shape: [usize; MAX_RANK],
    strides: [usize; MAX_RANK],
    offset: usize,
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} strides {:?} offset {}", self.shape(), self.strides(), self.offset)
    }
}

impl Layout {
    /// Row-major layout of `shape` from the start of a buffer.
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions, or more elements than `isize::MAX`.
    pub fn contiguous(shape: &[usize]) -> Result<Self> {
        if shape.len() > MAX_RANK {
            return Err(Error::shape(
                "shape",
                format!("at most {MAX_RANK} dimensions, got {}: {shape:?}", shape.len()),
            ));
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)));
        if elements.is_none_or(|n| n > isize::MAX as usize / 8) {
            return Err(Error::shape("shape", format!("{shape:?} has more elements than can be addressed")));
        }
        let mut layout = Layout { rank: shape.len(), shape: [1; MAX_RANK], strides: [0; MAX_RANK], offset: 0 };
        layout.shape[..shape.len()].copy_from_slice(shape);
        let mut stride = 1;
        for d in (0..shape.len()).rev() {
            layout.strides[d] = stride;
            stride *= shape[d].max(1);
        }
        Ok(layout)
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }

    /// Distance, in elements, between neighbours along each dimension.
    pub fn strides(&self) -> &[usize] {
        &self.strides[..self.rank]
    }

    /// Index of the first element in the buffer.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of elements; 1 for a 0-d layout.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the elements lie in row-major order without gaps. Strides of dimensions of size 1 do not matter.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for d in (0..self.rank).rev() {
            if self.shape[d] != 1 && self.strides[d] != expected {
                return self.is_empty();
            }
            expected *= self.shape[d];
        }
        true
    }

    /// Whether neighbours along the last dimension are neighbours in memory.
    pub fn has_contiguous_rows(&self) -> bool {
        self.rank == 0 || self.shape[self.rank - 1] <= 1 || self.strides[self.rank - 1] == 1
    }

    /// Whether two index tuples can name the same element (a broadcast dimension, for example).
    /// May answer true for exotic layouts that do not overlap.
    pub fn may_overlap_itself(&self) -> bool {
        let mut dims: Vec<(usize, usize)> =
            (0..self.rank).filter(|&d| self.shape[d] > 1).map(|d| (self.strides[d], self.shape[d])).collect();
        dims.sort_unstable();
        let mut reach = 0;
        for (stride, size) in dims {
            if stride <= reach {
                return !self.is_empty();
            }
            reach += stride * (size - 1);
        }
        false
    }

    /// The half-open range of buffer indices that the view touches; empty for an empty view.
    pub fn span(&self) -> std::ops::Range<usize> {
        if self.is_empty() {
            return self.offset..self.offset;
        }
        let last: usize = (0..self.rank).map(|d| (self.shape[d] - 1) * self.strides[d]).sum();
        self.offset..self.offset + last + 1
    }

    /// Offset in the buffer of the element with row-major number `index`.
    pub fn offset_of(&self, mut index: usize) -> usize {
        let mut offset = self.offset;
        for d in (0..self.rank).rev() {
            offset += (index % self.shape[d]) * self.strides[d];
            index /= self.shape[d];
        }
        offset
    }

    /// The layout of a copy without gaps: dimensions keep their order in memory, broadcast ones (stride 0) stay broadcast.
    pub(crate) fn packed(&self) -> Result<Self> {
        let mut packed = *self;
        packed.offset = 0;
        let mut stride = 1;
        for d in self.by_stride().into_iter().rev() {
            if self.strides[d] > 0 {
                packed.strides[d] = stride;
                stride *= self.shape[d].max(1);
            }
        }
        Ok(packed)
    }

    /// The dimensions from the largest stride to the smallest, equal ones in their own order.
    pub(crate) fn by_stride(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.rank).collect();
        order.sort_by_key(|&d| std::cmp::Reverse(self.strides[d]));
        order
    }

    /// The same elements with dimensions in the order `order`, a permutation of `0..rank`.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let mut seen = [false; MAX_RANK];
        let valid = order.len() == self.rank
            && order.iter().all(|&d| d < self.rank && !std::mem::replace(&mut seen[d.min(MAX_RANK - 1)], true));
        if !valid {
            return Err(Error::shape(
                "permute",
                format!("{order:?} is no permutation of the dimensions of {:?}", self.shape()),
            ));
        }
        let mut out = *self;
        for (to, &from) in order.iter().enumerate() {
            out.shape[to] = self.shape[from];
            out.strides[to] = self.strides[from];
        }
        Ok(out)
    }

    /// The elements `start..start + length` along `dim`.
    pub fn narrow(&self, dim: usize, start: usize, length: usize) -> Result<Self> {
        if dim >= self.rank || start.checked_add(length).is_none_or(|end| end > self.shape[dim]) {
            return Err(Error::shape(
                "narrow",
                format!("{start}..{start}+{length} along dimension {dim} does not fit the shape {:?}", self.shape()),
            ));
        }
        let mut out = *self;
        out.shape[dim] = length;
        // A view without elements stays where it was: behind the last element there may be no memory to point to.
        out.offset += if out.is_empty() { 0 } else { start * self.strides[dim] };
        Ok(out)
    }

    /// Repeats dimensions of size 1 (and new leading ones) to reach `shape`, with stride 0.
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Self> {
        let fits = shape.len() >= self.rank
            && (0..self.rank).all(|d| {
                let to = shape[shape.len() - self.rank + d];
                self.shape[d] == to || self.shape[d] == 1
            });
        if !fits {
            return Err(Error::shape("broadcast_to", format!("{:?} does not broadcast to {shape:?}", self.shape())));
        }
        let mut out = Layout::contiguous(shape)?;
        out.offset = self.offset;
        let lead = shape.len() - self.rank;
        for (d, &size) in shape.iter().enumerate() {
            out.strides[d] = if d < lead || self.shape[d - lead] != size { 0 } else { self.strides[d - lead] };
        }
        Ok(out)
    }

    /// The same elements, in row-major order, under another shape, if that needs no copy; `None` if it does.
    ///
    /// # Errors
    /// Another number of elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Option<Self>> {
        let mut out = Layout::contiguous(shape)?;
        if out.len() != self.len() {
            return Err(Error::shape(
                "reshape",
                format!("{:?} has {} elements, {shape:?} has {}", self.shape(), self.len(), out.len()),
            ));
        }
        out.offset = self.offset;
        if self.is_contiguous() {
            return Ok(Some(out));
        }
        // Match groups of old dimensions with groups of new ones of equal size, from the right; within a group the old
        // dimensions must be one arithmetic run of addresses.
        let old: Vec<usize> = (0..self.rank).filter(|&d| self.shape[d] != 1).collect();
        let (mut o, mut n) = (old.len(), out.rank);
        while n > 0 {
            if o == 0 {
                n -= 1;
                continue;
            }
            let (mut old_size, mut new_size) = (self.shape[old[o - 1]], out.shape[n - 1]);
            let (mut o_start, mut n_start) = (o - 1, n - 1);
            while old_size != new_size {
                if old_size < new_size {
                    if o_start == 0 {
                        return Ok(None);
                    }
                    o_start -= 1;
                    if self.strides[old[o_start]] != self.strides[old[o_start + 1]] * self.shape[old[o_start + 1]] {
                        return Ok(None);
                    }
                    old_size *= self.shape[old[o_start]];
                } else {
                    if n_start == 0 {
                        return Ok(None);
                    }
                    n_start -= 1;
                    new_size *= out.shape[n_start];
                }
            }
            let mut stride = self.strides[old[o - 1]];
            for d in (n_start..n).rev() {
                out.strides[d] = stride;
                stride *= out.shape[d];
            }
            (o, n) = (o_start, n_start);
        }
        Ok(Some(out))
    }
}

/// The shape that `a` and `b` broadcast to: aligned at the last dimension, sizes equal or 1.
///
/// # Errors
/// Sizes that differ and are not 1.
pub fn broadcast_shape(op: &'static str, a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |s: &[usize], d: usize| if d + s.len() < rank { 1 } else { s[d + s.len() - rank] };
    (0..rank)
        .map(|d| match (size(a, d), size(b, d)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Error::shape(op, format!("{a:?} and {b:?} do not broadcast to a common shape"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(l: &Layout) -> Vec<usize> {
        (0..l.len()).map(|i| l.offset_of(i)).collect()
    }

    #[test]
    fn reshape_keeps_row_major_order() {
        let base = Layout::contiguous(&[4, 6, 5]).unwrap();
        let views = [
            base,
            base.narrow(1, 2, 4).unwrap(),
            base.narrow(2, 1, 3).unwrap(),
            base.permute(&[1, 0, 2]).unwrap(),
            base.narrow(0, 1, 1).unwrap(),
            Layout::contiguous(&[1, 6, 1]).unwrap().broadcast_to(&[4, 6, 2]).unwrap(),
        ];
        let shapes: [&[usize]; 10] = [
            &[24, 5],
            &[4, 30],
            &[2, 2, 6, 5],
            &[4, 2, 2, 5],
            &[72],
            &[4, 1, 6, 1, 5],
            &[6, 5],
            &[12, 4],
            &[4, 1, 6, 2],
            &[4, 6, 1, 3],
        ];
        let mut viewed = 0;
        for view in views {
            for shape in shapes {
                if shape.iter().product::<usize>() != view.len() {
                    assert!(view.reshape(shape).is_err());
                } else if let Some(r) = view.reshape(shape).unwrap() {
                    assert_eq!(elements(&r), elements(&view), "{view:?} -> {shape:?}");
                    viewed += 1;
                }
            }
        }
        // Four of the whole, one each of the window, the columns, the single entry and the broadcast.
        assert_eq!(viewed, 8);
    }

    #[test]
    fn overlap_and_span() {
        let base = Layout::contiguous(&[3, 4]).unwrap();
        assert!(!base.may_overlap_itself());
        assert!(!base.permute(&[1, 0]).unwrap().may_overlap_itself());
        assert!(Layout::contiguous(&[1, 4]).unwrap().broadcast_to(&[3, 4]).unwrap().may_overlap_itself());
        assert_eq!(base.narrow(1, 1, 2).unwrap().span(), 1..11);
        assert!(base.narrow(1, 0, 0).unwrap().span().is_empty());
    }

    #[test]
    fn bad_views_are_errors() {
        let base = Layout::contiguous(&[3, 4]).unwrap();
        assert!(base.narrow(1, 3, 2).is_err());
        assert!(base.narrow(2, 0, 1).is_err());
        assert!(base.narrow(1, usize::MAX, 2).is_err());
        assert!(base.permute(&[0, 0]).is_err());
        assert!(base.broadcast_to(&[4]).is_err());
        assert!(Layout::contiguous(&[usize::MAX, 2]).is_err());
        assert!(Layout::contiguous(&[1; 9]).is_err());
    }
}
