//! Products against plain f64 loops: odd shapes, strides, alpha, accumulation, every path; bits for any thread count.

use super::super::isa::available;
use super::*;

/// A matrix of a test: its values, and where they stand.
#[derive(Clone)]
struct Matrix<F> {
    values: Vec<F>,
    rows: usize,
    cols: usize,
    strides: (isize, isize),
}

/// Row-major, column-major, rows apart, every second column, and rows from the last to the first.
#[derive(Clone, Copy, Debug)]
enum Layout {
    Rows,
    Columns,
    Apart,
    Sparse,
    Backwards,
}

const LAYOUTS: [Layout; 5] = [Layout::Rows, Layout::Columns, Layout::Apart, Layout::Sparse, Layout::Backwards];

impl<F: Float> Matrix<F> {
    fn filled(rows: usize, cols: usize, layout: Layout, mut value: impl FnMut() -> f64) -> Self {
        let (r, c) = (rows as isize, cols as isize);
        let strides = match layout {
            Layout::Rows => (c, 1),
            Layout::Columns => (1, r),
            Layout::Apart => (c + 3, 1),
            Layout::Sparse => (2 * c + 1, 2),
            Layout::Backwards => (-c, 1),
        };
        let steps = (strides.0.unsigned_abs(), strides.1.unsigned_abs());
        let span = (rows.max(1) - 1) * steps.0 + (cols.max(1) - 1) * steps.1 + 1;
        // Miri sees who reads beyond the last value.
        let beyond = if cfg!(miri) { 0 } else { steps.0 + steps.1 };
        let values = (0..span + beyond).map(|_| F::from_f64(value())).collect();
        Matrix { values, rows, cols, strides }
    }

    /// What lies between the rows and after the last is NaN, which spreads if it is read.
    fn random(rows: usize, cols: usize, layout: Layout, seed: u64) -> Self {
        let mut state = seed;
        let mut matrix = Self::filled(rows, cols, layout, || f64::NAN);
        for (i, j) in (0..rows * cols).map(|at| (at / cols, at % cols)) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let place = matrix.place(i, j);
            matrix.values[place] = F::from_f64((state >> 40) as f64 / (1 << 23) as f64 - 1.0);
        }
        matrix
    }

    fn start(&self) -> usize {
        if self.strides.0 < 0 { (self.rows.max(1) - 1) * self.strides.0.unsigned_abs() } else { 0 }
    }

    fn place(&self, i: usize, j: usize) -> usize {
        (self.start() as isize + i as isize * self.strides.0 + j as isize * self.strides.1) as usize
    }

    fn get(&self, i: usize, j: usize) -> f64 {
        self.values[self.place(i, j)].to_f64()
    }

    fn view(&self) -> super::Matrix<F> {
        let values = Values::Wide(self.values.as_ptr().wrapping_add(self.start()).cast_mut());
        let (row_stride, col_stride) = self.strides;
        super::Matrix { values, rows: self.rows, cols: self.cols, row_stride, col_stride }
    }

    fn view_mut(&mut self) -> super::Matrix<F> {
        let values = Values::Wide(self.values.as_mut_ptr().wrapping_add(self.start()));
        super::Matrix { values, ..self.view() }
    }
}

/// Holds `found` against alpha a b (+ before), by plain loops in f64.
fn check<F: Float>(
    found: &Matrix<F>,
    before: &Matrix<F>,
    a: &Matrix<F>,
    b: &Matrix<F>,
    alpha: f64,
    accumulate: bool,
    what: &str,
) {
    let epsilon = if size_of::<F>() == 4 { f64::from(f32::EPSILON) } else { f64::EPSILON };
    // Plain loops are slow: of a large product, some rows.
    let step = 1 + found.rows * found.cols * a.cols / 2_000_000;
    for i in (0..found.rows).step_by(step) {
        for j in 0..found.cols {
            let (mut exact, mut scale) =
                if accumulate { (before.get(i, j), before.get(i, j).abs()) } else { (0.0, 0.0) };
            for k in 0..a.cols {
                exact += alpha * a.get(i, k) * b.get(k, j);
                scale += (alpha * a.get(i, k) * b.get(k, j)).abs();
            }
            // The error of a sum in any order is below its length times epsilon times the sum of magnitudes.
            let tolerance = epsilon * (a.cols as f64 + 2.0) * scale;
            let value = found.get(i, j);
            assert!((value - exact).abs() <= tolerance, "{what}: ({i}, {j}) is {value}, not {exact}");
        }
    }
}

/// `shapes`, or under Miri, which interprets, `few`.
fn sized(shapes: &[[usize; 3]], few: &[[usize; 3]]) -> Vec<[usize; 3]> {
    Vec::from(if cfg!(miri) { few } else { shapes })
}

/// The product of `a` and `b`, plus `out` if `accumulate`.
fn product<F>(out: super::Matrix<F>, a: super::Matrix<F>, b: super::Matrix<F>, accumulate: bool) -> Product<F>
where
    F: Float,
{
    Product { out, a, b, addend: accumulate.then_some(out) }
}

/// Products on every path of this processor.
fn check_all_ways<F: Float>(shape: [usize; 3], layouts: [Layout; 3], alpha: f64, accumulate: bool) {
    let [m, k, n] = shape;
    let a = Matrix::<F>::random(m, k, layouts[0], 1);
    let b = Matrix::<F>::random(k, n, layouts[1], 2);
    // What is overwritten must not be read: NaN would spread.
    let before =
        if accumulate { Matrix::random(m, n, layouts[2], 3) } else { Matrix::filled(m, n, layouts[2], || f64::NAN) };
    let pool = Pool::new(1).expect("a thread");
    for path in available() {
        let mut out = before.clone();
        let product = product(out.view_mut(), a.view(), b.view(), accumulate);
        // SAFETY: views of live vectors that hold them; `out` is separate.
        unsafe { gemm_on(path, Cells::Values, &pool, 1, |_| product, F::from_f64(alpha)) };
        let what = format!("{shape:?} {layouts:?} alpha {alpha} accumulate {accumulate} {path:?}");
        check(&out, &before, &a, &b, alpha, accumulate, &what);
    }
}

#[test]
fn products_agree_with_plain_loops_in_any_layout() {
    let small =
        [[1, 1, 1], [1, 5, 3], [3, 1, 2], [5, 2, 1], [2, 35, 23], [7, 13, 5], [17, 33, 31], [29, 9, 64], [29, 9, 100]];
    let shapes = [&small[..], &[[25, 64, 40], [37, 300, 19]]].concat();
    for shape in sized(&shapes, &[[2, 3, 5]]) {
        for a in LAYOUTS {
            for b in LAYOUTS {
                for out in LAYOUTS {
                    check_all_ways::<f32>(shape, [a, b, out], 1.0, false);
                    check_all_ways::<f64>(shape, [a, b, out], -0.5, true);
                }
            }
        }
    }
}

#[test]
fn products_agree_with_plain_loops_across_blocks() {
    use Layout::{Columns, Rows};
    let shapes = [
        [150, 790, 1030],
        [300, 520, 65],
        // Whole panels of b on every path; rows of a that share a set of the cache.
        [150, 790, 1024],
        [101, 1024, 64],
        [1, 700, 600],
        [600, 700, 1],
        [65, 3, 1100],
        [4, 70, 333],
        [1, 3, 5000],
        [97, 40_000, 50],
    ];
    for shape in sized(&shapes, &[[3, 386, 2]]) {
        for (a, b) in [(Rows, Rows), (Rows, Columns), (Columns, Rows), (Columns, Columns)] {
            check_all_ways::<f32>(shape, [a, b, Rows], 1.0, true);
            check_all_ways::<f32>(shape, [a, b, Columns], 0.25, false);
            check_all_ways::<f64>(shape, [a, b, Rows], 1.0, false);
        }
    }
}

/// Another matrix than the output: rows that are all the same, as of a bias, and one with a layout of its own, in every layout of the output, over one
/// block of k and several.
#[test]
fn another_matrix_is_added() {
    let shapes = [[5, 7, 3], [1, 40, 33], [40, 9, 2], [100, 500, 37], [110, 800, 64], [3, 0, 5]];
    let pool = Pool::new(2).expect("threads");
    for [m, k, n] in sized(&shapes, &[[3, 2, 5], [7, 5, 3]]) {
        let (a, b) = (Matrix::<f32>::random(m, k, Layout::Rows, 1), Matrix::<f32>::random(k, n, Layout::Columns, 2));
        for (layout, to) in LAYOUTS.into_iter().flat_map(|layout| LAYOUTS.map(|to| (layout, to))) {
            for repeated in [false, true] {
                let mut before = Matrix::<f32>::random(m, n, layout, 3);
                if repeated {
                    before.strides.0 = 0;
                }
                for path in available() {
                    let mut out = Matrix::filled(m, n, to, || f64::NAN);
                    let product =
                        Product { out: out.view_mut(), a: a.view(), b: b.view(), addend: Some(before.view()) };
                    // SAFETY: as above.
                    unsafe { gemm_on(path, Cells::Values, &pool, 1, |_| product, 0.5) };
                    check(
                        &out,
                        &before,
                        &a,
                        &b,
                        0.5,
                        true,
                        &format!("{m} {k} {n} {layout:?} {to:?} {repeated} {path:?}"),
                    );
                }
            }
        }
    }
}

#[test]
fn empty_products() {
    for shape in [[0, 3, 4], [4, 3, 0], [0, 0, 0], [3, 0, 5]] {
        check_all_ways::<f32>(shape, [Layout::Rows; 3], 1.0, false);
        check_all_ways::<f64>(shape, [Layout::Rows; 3], 1.0, true);
    }
}

#[test]
fn an_infinite_or_nan_input_is_seen() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut a = Matrix::<f32>::random(20, 30, Layout::Rows, 1);
        let b = Matrix::<f32>::random(30, 40, Layout::Rows, 2);
        a.values[7] = bad as f32;
        let mut out = Matrix::<f32>::random(20, 40, Layout::Rows, 3);
        let (pool, product) = (Pool::new(1).expect("a thread"), product(out.view_mut(), a.view(), b.view(), false));
        // SAFETY: as above.
        unsafe { gemm_batched(&pool, 1, |_| product, 1.0) };
        assert!((0..40).all(|j| !out.get(0, j).is_finite()) && (0..40).all(|j| out.get(1, j).is_finite()));
    }
}

#[test]
fn what_is_stored_in_bf16_is_summed_in_f32_and_rounded_once() {
    use Layout::{Apart, Columns, Rows};
    let small = [[1, 70, 130], [3, 33, 257], [7, 20, 31], [9, 1, 40], [50, 301, 70]];
    let shapes = [&small[..], &[[100, 530, 40], [97, 84, 530], [97, 801, 9]]].concat();
    for shape in sized(&shapes, &[[3, 5, 2], [7, 3, 11]]) {
        for layouts in [[Rows, Rows], [Apart, Columns], [Columns, Rows], [Columns, Columns]] {
            for to in [Rows, Columns] {
                for path in available() {
                    for cells in [Cells::Values, Cells::Pairs] {
                        bf16_stored(path, cells, shape, [layouts[0], layouts[1], to]);
                    }
                }
            }
        }
    }
}

#[test]
fn sums_of_an_output_in_bf16_go_from_one_part_of_k_to_the_next() {
    use Layout::{Columns, Rows};
    // More panels than are packed at a time, of pairs too; less under Miri, where there is but one part.
    for shape in sized(&[[97, 2100, 1020]], &[[7, 3, 11]]) {
        for path in available() {
            for cells in [Cells::Values, Cells::Pairs] {
                let plan = Plan::new::<f32>(path, 1, [shape[0], shape[2], shape[1].div_ceil(cells.values())], true);
                assert!(plan.leaves_sums || cfg!(miri), "{plan:?}");
                bf16_stored(path, cells, shape, [Rows, Columns, Rows]);
            }
        }
    }
}

/// Holds a product of bf16 matrices against that of the same numbers in f32, to the bit: multiples of 1/8, whose sums are exact in any order.
fn bf16_stored(path: Path, cells: Cells, [m, k, n]: [usize; 3], layouts: [Layout; 3]) {
    let rounded = |x: &f32| bf16::from_f32((x * 8.0).round() / 8.0);
    let narrow = |wide: &Matrix<f32>| wide.values.iter().map(rounded).collect::<Vec<bf16>>();
    let widened =
        |wide: &Matrix<f32>| Matrix { values: narrow(wide).iter().map(|x| x.to_f32()).collect(), ..wide.clone() };
    let stored = |values: &mut Vec<bf16>, wide: &Matrix<f32>| {
        let values = Values::Bf16(values.as_mut_ptr().wrapping_add(wide.start()));
        super::Matrix { values, ..wide.view() }
    };
    let (a, b) = (Matrix::<f32>::random(m, k, layouts[0], 1), Matrix::<f32>::random(k, n, layouts[1], 2));
    let (mut a_bf16, mut b_bf16) = (narrow(&a), narrow(&b));
    let (a, b) = (widened(&a), widened(&b));
    let before = widened(&Matrix::random(m, n, layouts[2], 3));
    let pool = Pool::new(2).expect("threads");
    let mut sums = Matrix::<f32>::filled(m, n, layouts[2], || f64::NAN);
    let wide = product(sums.view_mut(), a.view(), b.view(), false);
    // SAFETY: views of live vectors that hold them; outputs are separate.
    unsafe { gemm_on(path, Cells::Values, &pool, 1, |_| wide, 1.5) };
    for accumulate in [false, true] {
        let mut out = narrow(&before);
        let (to, a, b) = (stored(&mut out, &before), stored(&mut a_bf16, &a), stored(&mut b_bf16, &b));
        // SAFETY: as above.
        unsafe { gemm_on(path, cells, &pool, 1, |_| product(to, a, b, accumulate), 1.5) };
        for (place, (found, sum)) in out.iter().zip(&sums.values).enumerate() {
            let expected = if accumulate { before.values[place] + sum } else { *sum };
            // Places between the rows of the output hold what they held.
            let inside = !sum.is_nan();
            let expected = if inside { bf16::from_f32(expected) } else { bf16::from_f32(before.values[place]) };
            assert_eq!(
                found.to_bits(),
                expected.to_bits(),
                "{m} {k} {n} {layouts:?} {accumulate} {path:?} {cells:?} at {place}"
            );
        }
    }
}

/// The bits of a batch of products with each of 1, 2, 3 and 7 threads.
fn bits(batch: usize, shape: [usize; 3], layouts: [Layout; 2], accumulate: bool) {
    let [m, k, n] = shape;
    let matrices: Vec<_> = (0..batch as u64)
        .map(|i| (Matrix::<f32>::random(m, k, layouts[0], 2 * i), Matrix::<f32>::random(k, n, layouts[1], 2 * i + 1)))
        .collect();
    let before = Matrix::<f32>::random(batch * m, n, Layout::Rows, 99);
    let mut first: Option<Vec<f32>> = None;
    for threads in [1, 2, 3, 7] {
        let pool = Pool::new(threads).expect("threads");
        let mut out = before.clone();
        let all = out.view_mut();
        let item =
            |i: usize| product(all.block(i * m, 0, m, n), matrices[i].0.view(), matrices[i].1.view(), accumulate);
        // SAFETY: as above; the blocks of `out` are separate.
        unsafe { gemm_batched(&pool, batch, item, 1.5) };
        let first = first.get_or_insert_with(|| out.values.clone());
        let same = first.iter().zip(&out.values).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{batch} x {shape:?} {layouts:?} differs between 1 and {threads} threads");
    }
    let found = first.expect("four runs");
    for (i, (a, b)) in matrices.iter().enumerate() {
        let rows = |values: &[f32]| Matrix {
            values: values[i * m * n..].to_vec(),
            rows: m,
            cols: n,
            strides: (n as isize, 1),
        };
        let what = format!("{i} of {batch} x {shape:?} {layouts:?}");
        check(&rows(&found), &rows(&before.values), a, b, 1.5, accumulate, &what);
    }
}

#[test]
fn parts_of_products_are_those_of_any_number_of_threads() {
    use Layout::{Columns, Rows};
    // A few rows in several tasks; panels of three products together, each of several blocks of k; some blocks of k at a time; some columns at
    // a time.
    for (batch, shape) in [(3, [2, 200, 700]), (3, [100, 400, 40]), (1, [97, 1900, 600]), (1, [97, 1100, 1040])] {
        for layouts in [[Rows, Rows], [Columns, Columns]] {
            bits(batch, shape, layouts, false);
        }
    }
}

#[test]
fn pairs_are_of_bf16_on_the_path_that_multiplies_them() {
    let (mut wide, mut narrow) = (0f32, bf16::ZERO);
    let of = |values| super::Matrix { values, rows: 1, cols: 1, row_stride: 1, col_stride: 1 };
    let (wide, narrow) = (of(Values::Wide(&raw mut wide)), of(Values::Bf16(&raw mut narrow)));
    for path in Path::ALL {
        let pairs = if path.multiplies_bf16() { Cells::Pairs } else { Cells::Values };
        assert_eq!(Cells::of(path, &narrow, &narrow), pairs);
        assert_eq!([Cells::of(path, &wide, &narrow), Cells::of(path, &narrow, &wide)], [Cells::Values; 2]);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    use Layout::{Columns, Rows};
    for (batch, shape) in [
        (1, [1, 1, 1]),
        (1, [700, 33, 1100]),
        (1, [1000, 128, 384]),
        (1, [1000, 344, 128]),
        (1, [384, 1000, 128]),
        (1, [100, 3000, 70]),
        (2, [65, 1100, 33]),
        (1, [129, 1025, 345]),
        (1, [513, 300, 513]),
        (1, [2, 500, 3000]),
        (5, [64, 70, 80]),
        (3, [300, 20, 600]),
        (0, [4, 4, 4]),
    ] {
        for layouts in [[Rows, Rows], [Rows, Columns], [Columns, Rows], [Columns, Columns]] {
            bits(batch, shape, layouts, false);
            bits(batch, shape, layouts, true);
        }
    }
}
