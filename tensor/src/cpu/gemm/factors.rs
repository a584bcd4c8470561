//! The factors of a product as register tiles read them: where they lie, if their cells stand there as a tile takes them, or packed.

use super::super::isa::Path;
use super::super::math::Float;
use super::kernel::on_tile;
use super::pack::{PackLeft, PackRight};
use super::{Cells, DEPTH, Matrix, Values};

/// Which cells of a stand side by side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Order {
    /// Those of a row.
    Rows,
    /// Those of a column.
    Columns,
}

impl Order {
    /// In the memory of `a`, and in panels of it.
    pub(super) fn of<F>(a: &Matrix<F>) -> Self {
        if a.row_stride == 1 && a.col_stride != 1 { Order::Columns } else { Order::Rows }
    }
}

/// Bytes after which places fall into the same set of a first-level cache.
const WAY: usize = 4 << 10;
/// Most rows of a tile whose cells for the same k may fall into one set, which holds 8 lines: with 12 of them a product takes up to 9% longer than by packed
/// rows, with 6 it does not.
const SAME_SET: usize = 6;

/// Lines of cells: rows of a in [`Order::Rows`], its columns in [`Order::Columns`], rows of b.
#[derive(Clone, Copy)]
pub(super) struct Lines<F> {
    /// The first cell. One that is a pair of bf16 need not be aligned.
    pub(super) first: *const F,
    /// Cells from one line to the next.
    pub(super) stride: isize,
}

impl<F> Lines<F> {
    /// Those that begin so many lines and cells further on.
    #[inline(always)]
    pub(super) fn from(self, lines: usize, cells: usize) -> Self {
        Lines { first: self.first.wrapping_offset(lines as isize * self.stride).wrapping_add(cells), ..self }
    }
}

/// Rows of a for the tiles of a task. Whoever uses it sees to it that what it points to is still there.
#[derive(Clone, Copy)]
pub(super) struct Left<F> {
    pub(super) order: Order,
    /// What the first tiles read in place, and how many these are.
    lines: Lines<F>,
    in_place: usize,
    /// Panels for the others.
    packed: *const F,
    mr: usize,
}

impl<F: Float> Left<F> {
    /// The rows of `a` for tiles of `mr` rows: whole tiles in place, if they can be read there, the rest packed at `to`.
    pub(super) fn of(path: Path, a: Matrix<F>, cells: Cells, mr: usize, to: &mut [F]) -> Self {
        let (order, lines) = (Order::of(&a), Self::lines(a, cells, mr));
        let in_place = lines.map_or(0, |_| a.rows / mr);
        let (whole, rest) = (in_place * mr, a.rows - in_place * mr);
        if rest > 0 {
            on_tile(path, PackLeft { to, cells, a: a.block(whole, 0, rest, a.cols) });
        }
        let packed = to.as_ptr();
        Left { order, lines: lines.unwrap_or(Lines { first: packed, stride: 0 }), in_place, packed, mr }
    }

    /// The rows or columns of `a`, if tiles can read them in place.
    fn lines(a: Matrix<F>, cells: Cells, mr: usize) -> Option<Lines<F>> {
        let order = Order::of(&a);
        let (first, stride) = match (order, a.values, cells) {
            (Order::Columns, Values::Wide(first), Cells::Values) => (first, a.col_stride),
            (Order::Rows, Values::Wide(first), Cells::Values) if a.col_stride == 1 => (first, a.row_stride),
            // Neighbours are pairs as they are.
            (Order::Rows, Values::Bf16(first), Cells::Pairs)
                if a.col_stride == 1 && a.row_stride % 2 == 0 && a.cols.is_multiple_of(2) =>
            {
                (first.cast(), a.row_stride / 2)
            }
            _ => return None,
        };
        let far_apart = order == Order::Columns || in_a_set::<F>(stride, mr) <= SAME_SET;
        far_apart.then_some(Lines { first: first.cast_const(), stride })
    }

    /// The lines of tile number `index`.
    #[inline(always)]
    pub(super) fn tile(&self, index: usize) -> Lines<F> {
        match (index.checked_sub(self.in_place), self.order) {
            (None, Order::Rows) => self.lines.from(index * self.mr, 0),
            (None, Order::Columns) => self.lines.from(0, index * self.mr),
            (Some(index), order) => {
                let stride = if order == Order::Rows { DEPTH } else { self.mr };
                Lines { first: self.packed.wrapping_add(index * DEPTH * self.mr), stride: stride as isize }
            }
        }
    }
}

/// Most of `rows` rows so many cells apart that fall into the same set.
fn in_a_set<F>(stride: isize, rows: usize) -> usize {
    // Rows come back to a set after as many as it takes to whole ways.
    let bytes = stride.unsigned_abs() * size_of::<F>() % WAY;
    let distinct = WAY >> bytes.trailing_zeros().min(WAY.trailing_zeros());
    rows.div_ceil(distinct)
}

/// Rows of b for the columns of a task, and how far apart its panels begin.
#[derive(Clone, Copy)]
pub(super) struct Right<F> {
    pub(super) packed: bool,
    lines: Lines<F>,
    panel: usize,
}

impl<F: Float> Right<F> {
    /// The rows of `b`, `depth` cells of each column: in place, if they can be read there, else packed at `to`.
    pub(super) fn of(path: Path, b: Matrix<F>, cells: Cells, depth: usize, nr: usize, to: &mut [F]) -> Self {
        Right::in_place(b, cells, nr).unwrap_or_else(|| {
            on_tile(path, PackRight { to: to.as_mut_ptr(), cells, depth, at: 0, b });
            Right::packed(to, depth, nr)
        })
    }

    /// The rows of `b` in place, if they can be read there: by whole panels of `nr` columns.
    pub(super) fn in_place(b: Matrix<F>, cells: Cells, nr: usize) -> Option<Self> {
        match (b.values, cells) {
            (Values::Wide(first), Cells::Values) if b.col_stride == 1 && b.cols.is_multiple_of(nr) => Some(Right {
                packed: false,
                lines: Lines { first: first.cast_const(), stride: b.row_stride },
                panel: nr,
            }),
            _ => None,
        }
    }

    /// Packed panels, each [depth, nr].
    pub(super) fn packed(panels: &[F], depth: usize, nr: usize) -> Self {
        Right { packed: true, lines: Lines { first: panels.as_ptr(), stride: nr as isize }, panel: depth * nr }
    }

    /// The rows of panel number `index`.
    #[inline(always)]
    pub(super) fn panel(&self, index: usize) -> Lines<F> {
        self.lines.from(0, index * self.panel)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tile;
    use super::*;

    #[test]
    fn rows_in_a_set_of_the_cache() {
        let in_a_set = |bytes: isize| in_a_set::<f32>(bytes / 4, 12);
        assert_eq!(
            [4096, 8192, 0, 2048, 6144, 1024, 3072, 1536, 768, 772].map(in_a_set),
            [12, 12, 12, 6, 6, 3, 3, 2, 1, 1]
        );
    }

    fn matrix<F>(values: Values<F>, [rows, cols]: [usize; 2], [row_stride, col_stride]: [isize; 2]) -> Matrix<F> {
        Matrix { values, rows, cols, row_stride, col_stride }
    }

    #[test]
    fn what_stands_as_tiles_take_it_is_read_in_place() {
        let (wide, narrow) = (Values::<f32>::Wide(std::ptr::null_mut()), Values::Bf16(std::ptr::null_mut()));
        let left = |values, shape, strides, cells| Left::lines(matrix(values, shape, strides), cells, 12).is_some();
        assert!(left(wide, [20, 10], [12, 1], Cells::Values) && left(wide, [20, 10], [1, 20], Cells::Values));
        // Neither rows nor columns; what is computed in another type; rows that share a set of the cache, unlike columns.
        assert!(!left(wide, [20, 10], [24, 2], Cells::Values) && !left(narrow, [20, 10], [12, 1], Cells::Values));
        assert!(!left(wide, [20, 10], [1024, 1], Cells::Values) && left(wide, [20, 10], [1, 1024], Cells::Values));
        // Pairs: neighbours along k alone, and a whole number of them.
        assert!(left(narrow, [20, 10], [12, 1], Cells::Pairs));
        for (shape, strides) in [([20, 9], [12, 1]), ([20, 10], [11, 1]), ([20, 10], [1, 20])] {
            assert!(!left(narrow, shape, strides, Cells::Pairs), "{shape:?} {strides:?}");
        }
        let right_of =
            |values, cols, strides, cells| Right::in_place(matrix(values, [10, cols], strides), cells, 8).is_some();
        let right = |values, strides, cells| right_of(values, 16, strides, cells);
        assert!(!right_of(wide, 17, [20, 1], Cells::Values));
        assert!(right(wide, [20, 1], Cells::Values) && !right(wide, [1, 10], Cells::Values));
        assert!(!right(narrow, [20, 1], Cells::Values) && !right(narrow, [20, 1], Cells::Pairs));
    }

    #[test]
    fn tiles_begin_where_their_rows_do_and_the_last_is_packed() {
        let mut values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let mr = tile::<f32>(Path::Portable).0;
        let mut packed = vec![-1.0; mr * DEPTH];
        for (strides, next) in [([30, 1], 1), ([1, 30], mr)] {
            let a = matrix(Values::Wide(values.as_mut_ptr()), [3 * mr + 2, 10], strides);
            let left = Left::of(Path::Portable, a, Cells::Values, mr, &mut packed);
            for index in 0..3 {
                // SAFETY: the first value of a row of the matrix.
                assert_eq!(unsafe { *left.tile(index).first }, ((index * mr) as isize * strides[0]) as f32);
                assert_eq!(left.tile(index).stride, 30);
            }
            assert_eq!(left.tile(3).first, packed.as_ptr());
            let first = (3 * mr) as isize * strides[0];
            assert_eq!([packed[0], packed[next]], [first as f32, (first + strides[1]) as f32]);
        }
    }
}
