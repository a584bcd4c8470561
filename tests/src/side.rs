//! One primitive computed twice: on a device in some dtype and layout, and on the CPU in f64 over numbers rounded to that dtype.
//!
//! Primitives are called below the checked methods of `Tensor`, so that combinations of types that those refuse are reached too.

use std::sync::OnceLock;

use patchgpt_tensor::{Backend, DType, Device, Result, Tensor};

use crate::array::Array;
use crate::tolerance::mismatch;

/// The CPU with one thread, on which references are computed.
pub fn cpu() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| Device::cpu_with_threads(1).expect("a CPU"))
}

/// How rows lie in memory.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Without gaps.
    Dense,
    /// With gaps, at multiples of 16 bytes.
    Aligned,
    /// With gaps, at odd places.
    Odd,
}

/// Every layout.
pub const PLACES: [Place; 3] = [Place::Dense, Place::Aligned, Place::Odd];

/// One side of a comparison: a device, the element type, the layout of rows.
pub struct Side<'a> {
    /// Where it computes.
    pub device: &'a Device,
    /// The element type.
    pub dtype: DType,
    /// The type whose numbers it is given, on either side.
    pub numbers: DType,
    /// How rows lie.
    pub place: Place,
}

impl Side<'_> {
    /// The device's primitives.
    pub fn backend(&self) -> &dyn Backend {
        self.device.backend()
    }

    /// Rows of `array`, placed.
    pub fn rows(&self, array: &Array) -> Result<Tensor> {
        let dense = Tensor::from_slice(&array.data, &array.shape, self.device)?.cast(self.dtype)?;
        let (before, after) = match self.place {
            Place::Dense => return Ok(dense),
            Place::Aligned => (16, 32),
            Place::Odd => (1, 2),
        };
        let last = array.shape.len() - 1;
        let mut shape = array.shape.clone();
        shape[last] += before + after;
        let wide = Tensor::full(&shape, f64::NAN, self.dtype, self.device)?;
        let window = wide.narrow(last, before, array.shape[last])?;
        window.copy_(&dense)?;
        Ok(window)
    }

    /// A contiguous vector in the element type.
    pub fn vector(&self, array: &Array) -> Result<Tensor> {
        Tensor::from_slice(&array.data, &array.shape, self.device)?.cast(self.dtype)
    }

    /// A contiguous tensor in the type of statistics.
    pub fn statistic(&self, array: &Array) -> Result<Tensor> {
        Tensor::from_slice(&array.data, &array.shape, self.device)?.cast(self.dtype.accumulator())
    }

    /// An output: what is there before is random where it is added to, else NaN.
    pub fn out(&self, shape: &[usize], accumulate: bool) -> Result<Tensor> {
        let before = if accumulate { random(shape, 77).rounded_to(self.numbers) } else { nan(shape) };
        self.rows(&before)
    }

    /// An output of `n` statistics.
    pub fn empty_statistic(&self, n: usize) -> Result<Tensor> {
        Tensor::full(&[n], f64::NAN, self.dtype.accumulator(), self.device)
    }
}

/// Numbers in [-1, 1).
pub fn random(shape: &[usize], seed: u64) -> Array {
    Array::random(shape, 1.0, seed)
}

/// NaN throughout.
pub fn nan(shape: &[usize]) -> Array {
    Array::from_fn(shape, |_| f64::NAN)
}

/// Rounding to any element type, so that both sides see the same numbers.
pub trait Rounded {
    /// The nearest numbers of `dtype`.
    fn rounded_to(&self, dtype: DType) -> Array;
}

impl Rounded for Array {
    fn rounded_to(&self, dtype: DType) -> Array {
        let t = Tensor::from_slice(&self.data, &self.shape, cpu()).expect("a tensor");
        Array::of(&t.cast(dtype).expect("a cast")).expect("an array")
    }
}

/// Allows one rounding to the output's type, and what sums of `terms` terms of the size of the largest result may lose in the accumulator.
///
/// # Panics
/// An element differs by more; NaN and infinity must stand where the reference has them.
pub fn compare(what: &str, got: &Tensor, expected: &Tensor, terms: usize) {
    let (g, e) = (Array::of(got).expect("a result"), Array::of(expected).expect("a reference"));
    assert_eq!(g.shape, e.shape, "{what}");
    let scale = e.data.iter().filter(|x| x.is_finite()).fold(1e-3, |m: f64, x| m.max(x.abs()));
    let unit = match got.dtype() {
        DType::BF16 => 2f64.powi(-8) * 1.01,
        _ => 0.0,
    };
    let accumulator = if got.dtype() == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    let sums = accumulator * (16.0 + 4.0 * (terms as f64).sqrt()) * scale;
    for (i, (&g, &e)) in g.data.iter().zip(&e.data).enumerate() {
        let fine =
            if e.is_finite() { (g - e).abs() <= unit * e.abs() + sums } else { g == e || (g.is_nan() && e.is_nan()) };
        assert!(fine, "{what}: element {i} is {g} instead of {e}");
    }
}

/// Allows differences of `relative` times the largest magnitude of the reference.
///
/// # Panics
/// An element differs by more.
pub fn compare_within(what: &str, got: &Tensor, expected: &Tensor, relative: f64) {
    let (g, e) = (Array::of(got).expect("a result"), Array::of(expected).expect("a reference"));
    let mismatch = mismatch(&g, &e, relative);
    assert!(mismatch.is_none(), "{what}: {}", mismatch.unwrap_or_default());
}

/// Runs `body` on `device` in each dtype and layout, and on the CPU in f64 over numbers rounded to that dtype, and compares its outputs.
///
/// # Panics
/// An output differs, or `body` fails.
pub fn check(device: &Device, op: &str, terms: usize, body: impl Fn(&Side) -> Result<Vec<Tensor>>) {
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        for place in PLACES {
            let what = format!("{op} in {dtype}, {place:?}");
            let got = body(&Side { device, dtype, numbers: dtype, place }).unwrap_or_else(|e| panic!("{what}: {e}"));
            let reference = Side { device: cpu(), dtype: DType::F64, numbers: dtype, place: Place::Dense };
            let expected = body(&reference).unwrap_or_else(|e| panic!("{what}, reference: {e}"));
            for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
                compare(&format!("{what}, output {i}"), g, e, terms);
            }
        }
    }
}
