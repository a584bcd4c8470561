//! What a gradient check found, and its verdict.

use std::fmt;

use super::Options;
use super::difference::Difference;
use crate::{Error, Result};

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every comparison is within the tolerance or excused, and each input has comparisons within the tolerance.
    Passed,
    /// Something differs, is not finite, or does not fit.
    Failed,
    /// Nothing failed, but for some input no comparison was able to certify anything.
    Unchecked,
}

/// How an input was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One element after the other.
    Elements,
    /// Along random directions.
    Directions,
}

/// One comparison of the two gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The element's index; `None` for a direction.
    pub index: Option<Vec<usize>>,
    /// What backward says.
    pub analytic: f64,
    /// What the differences say.
    pub numeric: f64,
    /// The larger of the two steps.
    pub step: f64,
    /// Estimated error of `numeric`.
    pub uncertainty: f64,
}

/// What was found about one input.
#[derive(Clone, Debug)]
pub struct InputReport {
    /// The input's shape.
    pub shape: Vec<usize>,
    /// Element by element, or along directions.
    pub method: Method,
    /// Comparisons within the tolerance.
    pub agreed: usize,
    /// Comparisons beyond the tolerance but within the error of the differences or the absolute tolerance.
    pub excused: usize,
    /// Comparisons that failed.
    pub failed: usize,
    /// Elements left out as kinks.
    pub skipped: usize,
    /// The larger norm of the two gradients; errors are relative to it.
    pub scale: f64,
    /// The comparison with the largest error.
    pub worst: Option<Comparison>,
    /// The verdict on this input.
    pub verdict: Verdict,
}

/// What a gradient check found.
#[derive(Clone, Debug)]
pub struct Report {
    /// One for each input.
    pub inputs: Vec<InputReport>,
    /// What else is wrong: gradients that do not add up or that depend on what else is tracked, outputs that depend on strides or recording, tensors
    /// that changed unnoticed.
    pub problems: Vec<String>,
    /// Runs of the function.
    pub evaluations: usize,
    /// The tolerance asked for.
    pub tolerance: f64,
}

impl Comparison {
    /// `|analytic - numeric|`; NaN if either is not finite.
    pub fn error(&self) -> f64 {
        match self.analytic.is_finite() && self.numeric.is_finite() {
            true => (self.analytic - self.numeric).abs(),
            false => f64::NAN,
        }
    }
}

impl Report {
    /// The verdict on all inputs: failed if one failed, else unchecked if one is or if there are no elements at all.
    pub fn verdict(&self) -> Verdict {
        let any = |verdict| self.inputs.iter().any(|i| i.verdict == verdict);
        if !self.problems.is_empty() || any(Verdict::Failed) {
            Verdict::Failed
        } else if any(Verdict::Unchecked) || !self.inputs.iter().any(|i| !i.is_empty()) {
            Verdict::Unchecked
        } else {
            Verdict::Passed
        }
    }

    /// The report if the check passed.
    ///
    /// # Errors
    /// [`Error::GradientCheck`] with the report if it failed or checked nothing.
    pub fn into_result(self) -> Result<Report> {
        match self.verdict() {
            Verdict::Passed => Ok(self),
            _ => Err(Error::GradientCheck(Box::new(self))),
        }
    }
}

impl InputReport {
    /// Whether the input has no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Judges the comparisons of one input.
    pub(super) fn judge(
        shape: &[usize],
        method: Method,
        found: &[Difference],
        skipped: usize,
        scale: f64,
        options: &Options,
        zero: bool,
    ) -> InputReport {
        let (mut agreed, mut excused, mut failed) = (0, 0, 0);
        let mut worst: Option<&Difference> = None;
        for d in found {
            let (error, uncertainty) = (d.error() * d.unit, d.uncertainty * d.unit);
            let within = match zero {
                true => !error.is_nan() && d.analytic.abs().max(d.numeric.abs()) <= d.uncertainty,
                // Where the differences are as uncertain as the gradient is large, agreement says nothing.
                false => error <= options.tolerance * scale && uncertainty < scale,
            };
            if within {
                agreed += 1;
            } else if !zero && error <= uncertainty.max(options.absolute) {
                excused += 1;
            } else {
                failed += 1;
            }
            // A NaN is worse than any number.
            let badness = |error: f64| if error.is_nan() { f64::INFINITY } else { error };
            if worst.is_none_or(|w| badness(error) > badness(w.error() * w.unit)) {
                worst = Some(d);
            }
        }
        let verdict = match (failed, agreed) {
            (1.., _) => Verdict::Failed,
            (0, 0) if !shape.contains(&0) => Verdict::Unchecked,
            _ => Verdict::Passed,
        };
        let shape = shape.to_vec();
        let worst = worst.map(|d| d.comparison(&shape));
        InputReport { shape, method, agreed, excused, failed, skipped, scale, worst, verdict }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.index {
            Some(index) => write!(f, "element {index:?}")?,
            None => f.write_str("a random direction")?,
        }
        write!(
            f,
            ": analytic {:e}, numeric {:e}, error {:.1e} (step {:.1e}, error of the differences about {:.1e})",
            self.analytic,
            self.numeric,
            self.error(),
            self.step,
            self.uncertainty
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict() {
            Verdict::Passed => "passed",
            Verdict::Failed => "failed",
            Verdict::Unchecked => "unchecked: nothing was certified",
        };
        write!(f, "gradient check {verdict}, {} evaluations", self.evaluations)?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        for (i, input) in self.inputs.iter().enumerate() {
            let of = match input.method {
                Method::Elements => "elements",
                Method::Directions => "directions",
            };
            write!(
                f,
                "\n  input {i} {:?}: {} {of} agree, {} excused, {} differ, {} elements skipped; allowed {:.1e} of {:.3e}",
                input.shape, input.agreed, input.excused, input.failed, input.skipped, self.tolerance, input.scale
            )?;
            if let Some(worst) = &input.worst {
                write!(f, "\n    worst: {worst}")?;
            }
        }
        Ok(())
    }
}
