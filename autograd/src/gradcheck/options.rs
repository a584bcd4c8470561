//! Settings of a gradient check.

use std::fmt;
use std::sync::Arc;

/// An element that is about to be moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Number of the input.
    pub input: usize,
    /// Row-major number of the element in the input.
    pub index: usize,
    /// The element's value.
    pub value: f64,
    /// How far the check moves it, in both directions, at most.
    pub reach: f64,
}

/// Tells whether the function has no derivative near an element.
pub type Kink = Arc<dyn Fn(Point) -> bool + Send + Sync>;

/// How [`gradcheck`](fn@crate::gradcheck) checks. The defaults fit smooth functions of arguments around 1.
#[derive(Clone)]
pub struct Options {
    /// An element x moves by `step * max(|x|, 0.1)` and by half of that.
    pub step: f64,
    /// Largest error allowed, relative to the norm of the input's gradient.
    pub tolerance: f64,
    /// Errors up to this size are excused. They certify nothing: a check in which everything is excused is unchecked.
    pub absolute: f64,
    /// Inputs of up to so many elements are checked element by element, larger ones along random directions.
    pub element_limit: usize,
    /// Random directions for each large input.
    pub directions: usize,
    /// Seed of directions and of the gradient of an output that is not a scalar.
    pub seed: u64,
    /// Inputs whose gradient is zero by mathematics: they pass if both gradients are zero within the error of the differences.
    pub zero_inputs: Vec<usize>,
    /// Also run the function twice on the same inputs, whose gradients must then double: catches a backward that overwrites what it
    /// should add to, or that writes to the gradient it was given.
    pub second_use: bool,
    /// Also run with each input tracked alone and the others constant, which must give the same gradient.
    pub each_alone: bool,
    /// Also run with gradients that are views with gaps of memory that holds something, to which backward must add.
    pub strided_gradients: bool,
    /// Also overwrite each input, and the output, between forward and backward, which must refuse or not care.
    pub in_place_writes: bool,
    /// Elements for which one of these says true are left out; see [`Options::kinks`] and [`Options::kinks_at`].
    pub kinks: Vec<Kink>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            step: 2e-3,
            tolerance: 1e-6,
            absolute: 0.0,
            element_limit: 256,
            directions: 6,
            seed: 0,
            zero_inputs: Vec::new(),
            second_use: true,
            each_alone: true,
            strided_gradients: true,
            in_place_writes: true,
            kinks: Vec::new(),
        }
    }
}

impl Options {
    /// Declares values at which the function of an element has no derivative: elements that would be moved across one are left out.
    pub fn kinks_at(self, values: &[f64]) -> Self {
        let values = values.to_vec();
        self.kinks(move |p| values.iter().any(|v| (p.value - v).abs() <= p.reach))
    }

    /// Declares elements at which the function has no derivative: those for which `is_kink` says true are left out.
    pub fn kinks(mut self, is_kink: impl Fn(Point) -> bool + Send + Sync + 'static) -> Self {
        self.kinks.push(Arc::new(is_kink));
        self
    }

    pub(super) fn is_kink(&self, point: Point) -> bool {
        self.kinks.iter().any(|kink| kink(point))
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("step", &self.step)
            .field("tolerance", &self.tolerance)
            .field("absolute", &self.absolute)
            .field("element_limit", &self.element_limit)
            .field("directions", &self.directions)
            .field("seed", &self.seed)
            .field("zero_inputs", &self.zero_inputs)
            .field("second_use", &self.second_use)
            .field("each_alone", &self.each_alone)
            .field("strided_gradients", &self.strided_gradients)
            .field("in_place_writes", &self.in_place_writes)
            .field("kinks", &self.kinks.len())
            .finish()
    }
}
