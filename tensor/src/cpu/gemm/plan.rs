//! How a batch of products is cut: by shape alone.

use super::super::isa::Path;
use super::super::math::Float;
use super::DEPTH;
use super::kernel::tile;
use std::ops::Range;

/// Bytes of a panel of b. Beside a panel of a it fills a first-level cache of 48 KiB; where there is less it is read from the second, as fast as it is used,
/// and fewer blocks of k cost less: with AVX-512 up to 4% of a product.
const PANEL: usize = 48 << 10;
/// Most rows of a task: with [`DEPTH`] values of k, a third of a second-level cache of 512 KiB for f32.
const ROWS: usize = 96;
/// Fewest rows of a task that is cut further.
const ROWS_LEAST: usize = 24;
/// Most columns of a task that keeps its sums in a buffer of its own, or that packs its own panels.
const COLUMNS: usize = 512;
/// Fewest columns of a task that is cut further: packing rows of a is then below a tenth of the work.
const COLUMNS_LEAST: usize = 256;
/// Bytes of packed panels that are used before the next ones are packed: a part of a third-level cache.
const PACKED: usize = 4 << 20;
/// Columns that are packed together at least, if need be for a part of k at a time: rows of a are packed anew for each such set of columns.
const WIDE: usize = 1024;
/// Columns that a task packs at a time for itself.
const OWN_COLUMNS: usize = 64;
/// As many tasks as leave little waiting at the end, ...
const TASKS: usize = 16;
/// ... unless a task would have fewer multiplications than this, some 10 microseconds.
const WORK: usize = 1 << 19;

/// A batch of products [m, k] [k, n].
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Rows and columns of a register tile.
    pub(super) mr: usize,
    pub(super) nr: usize,
    /// Values of k in a panel; fewer in the last.
    pub(super) depth: usize,
    /// Whether panels are packed once, before the tasks.
    pub(super) shared: bool,
    /// Columns, and blocks of k, packed at a time where they are.
    chunk: usize,
    deep: usize,
    /// Whether an output is summed outside of it from one such part of k to the next.
    pub(super) leaves_sums: bool,
    /// Products whose panels are packed together.
    group: usize,
    /// Most rows and columns of a task.
    rows: usize,
    pub(super) cols: usize,
}

impl Plan {
    /// For `batch` products of [m, n, k]; `narrow` if the output is stored in bf16, and so summed in a buffer where k has several blocks.
    pub(super) fn new<F: Float>(path: Path, batch: usize, [m, n, k]: [usize; 3], narrow: bool) -> Plan {
        let (mr, nr) = tile::<F>(path);
        let depth = even(k, DEPTH.min(PANEL / (nr * size_of::<F>())), 8);
        let shared = m > ROWS;
        let values = PACKED / size_of::<F>();
        let most = (values / k.max(1)).max(nr);
        let (mut chunk, mut deep) = (n.next_multiple_of(nr), k.div_ceil(depth));
        if shared && chunk.saturating_mul(k) > values {
            chunk = even(n, most.max(WIDE), nr);
            deep = deep.min((values / chunk / depth).max(1));
        }
        let group = (most / chunk).clamp(1, batch);
        let blocks = k.div_ceil(depth);
        let leaves_sums = narrow && deep < blocks;
        let rows = even(m, ROWS, mr);
        let mut plan = Plan { m, n, k, mr, nr, depth, shared, chunk, deep, leaves_sums, group, rows, cols: chunk };
        if !shared || narrow && blocks > 1 && !leaves_sums {
            plan.cols = even(chunk, COLUMNS, nr);
        }
        let together = if shared { group } else { batch };
        while plan.tasks(together) < TASKS && plan.work() > WORK && plan.cut_further() {}
        plan
    }

    /// Tasks for `items` products, or a chunk of their columns.
    fn tasks(&self, items: usize) -> usize {
        items * self.down() * self.chunk.div_ceil(self.cols)
    }

    /// Tasks that rows are cut into.
    pub(super) fn down(&self) -> usize {
        self.m.div_ceil(self.rows)
    }

    /// Rows of task number `index` of those, of which all have as many tiles, or one more: a last one with few rows would leave threads waiting.
    pub(super) fn task_rows(&self, index: usize) -> Range<usize> {
        let tiles = self.m.div_ceil(self.mr);
        let cut = |index: usize| (index * tiles / self.down() * self.mr).min(self.m);
        cut(index)..cut(index + 1)
    }

    /// Multiplications of a task.
    fn work(&self) -> usize {
        self.rows.saturating_mul(self.cols).saturating_mul(self.k)
    }

    /// Smaller tasks; whether they could be made.
    fn cut_further(&mut self) -> bool {
        let (rows, cols) =
            (even(self.rows, self.rows.div_ceil(2), self.mr), even(self.cols, self.cols.div_ceil(2), self.nr));
        // Many columns use packed rows often, many rows use a panel often that comes from a farther cache.
        if cols < self.cols && self.cols >= 2 * COLUMNS_LEAST {
            self.cols = cols;
        } else if rows < self.rows && self.rows >= 2 * ROWS_LEAST {
            self.rows = rows;
        } else if cols < self.cols && self.m <= ROWS_LEAST {
            // Few rows: packing them again costs little.
            self.cols = cols;
        } else {
            return false;
        }
        true
    }

    /// Blocks of k.
    pub(super) fn blocks(&self) -> usize {
        self.k.div_ceil(self.depth)
    }

    /// Blocks of k whose panels are packed together.
    pub(super) fn deeps(&self) -> impl Iterator<Item = Range<usize>> {
        let (blocks, deep) = (self.blocks(), self.deep);
        (0..blocks).step_by(deep).map(move |start| start..blocks.min(start + deep))
    }

    /// Block number `index` of k.
    pub(super) fn block(&self, index: usize) -> Range<usize> {
        index * self.depth..self.k.min((index + 1) * self.depth)
    }

    /// Products whose panels are packed together.
    pub(super) fn groups(&self, batch: usize) -> impl Iterator<Item = Range<usize>> {
        let group = self.group;
        (0..batch).step_by(group).map(move |start| start..batch.min(start + group))
    }

    /// Columns that are packed together.
    pub(super) fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let Plan { n, chunk, .. } = *self;
        (0..n).step_by(chunk).map(move |start| start..n.min(start + chunk))
    }

    /// Values that the panels of a group take.
    pub(super) fn packed_len(&self) -> usize {
        self.group * self.k.min(self.deep * self.depth) * self.chunk
    }

    /// Sums that are kept from one part of k to the next: of all rows and the columns that are packed together.
    pub(super) fn sums_len(&self) -> usize {
        if self.leaves_sums { self.m * self.chunk } else { 0 }
    }

    /// Columns that a task packs at a time for itself.
    pub(super) fn own_columns(&self) -> usize {
        OWN_COLUMNS.next_multiple_of(self.nr)
    }
}

/// The length of the parts when `length` is cut into as few equal parts of at most `most` as it takes; a multiple of
/// `unit`, and so above `most` where that is less.
fn even(length: usize, most: usize, unit: usize) -> usize {
    let most = (most / unit * unit).max(unit);
    length.div_ceil(length.div_ceil(most).max(1)).next_multiple_of(unit).max(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_even_and_whole_tiles() {
        assert_eq!(even(384, 256, 8), 192);
        assert_eq!(even(256, 256, 8), 256);
        assert_eq!(even(100, 96, 6), 54);
        assert_eq!(even(0, 96, 6), 6);
        assert_eq!(even(5, 2, 16), 16);
    }

    #[test]
    fn a_plan_covers_its_products() {
        for batch in [1, 3, 100] {
            for m in [1, 5, 96, 97, 1000] {
                for n in [1, 17, 384, 40_000] {
                    for k in [1, 255, 257, 3000, 2_000_000] {
                        let plan = Plan::new::<f32>(Path::Portable, batch, [m, n, k], false);
                        assert!(plan.rows.is_multiple_of(plan.mr) && plan.cols.is_multiple_of(plan.nr));
                        assert!(plan.chunk.is_multiple_of(plan.nr) && plan.depth <= DEPTH && plan.rows <= ROWS);
                        assert!(plan.block(plan.blocks() - 1).end == k && !plan.block(plan.blocks() - 1).is_empty());
                        let ends: Vec<usize> = (0..plan.down()).map(|index| plan.task_rows(index).end).collect();
                        assert!(ends.last() == Some(&m) && plan.task_rows(0).start == 0);
                        assert!(ends.windows(2).all(|end| end[0] < end[1] && end[1] - end[0] <= plan.rows));
                        assert!(plan.chunks().last().is_some_and(|chunk| chunk.end == n));
                        assert!(plan.groups(batch).last().is_some_and(|group| group.end == batch));
                        let panels = plan.packed_len() * size_of::<f32>();
                        assert!(plan.deeps().last().is_some_and(|blocks| blocks.end == plan.blocks()));
                        assert!(!plan.shared || panels <= PACKED || plan.deep == 1, "{panels} bytes of panels");
                    }
                }
            }
        }
    }

    #[test]
    fn large_products_have_tasks_for_many_threads() {
        for [m, n, k] in [[2048, 384, 384], [384, 1536, 2048], [1, 50_000, 768], [8192, 384, 1024]] {
            let plan = Plan::new::<f32>(Path::Portable, 1, [m, n, k], false);
            assert!(plan.tasks(1) >= 8, "{plan:?}");
        }
    }
}
