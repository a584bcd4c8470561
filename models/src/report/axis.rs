//! An axis in Plotters' terms: a range in base units (tokens, FLOPs, seconds), shown in a unit that suits its end, with
//! ticks at 1, 2 or 5 times a power of ten.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// A number to divide an axis by, and its name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unit {
    pub(super) size: f64,
    pub(super) name: &'static str,
}

/// Units of tokens.
pub(super) const TOKENS: &[Unit] = &[
    Unit { size: 1.0, name: "tokens" },
    Unit { size: 1e3, name: "thousand tokens" },
    Unit { size: 1e6, name: "million tokens" },
    Unit { size: 1e9, name: "billion tokens" },
];
/// Units of model FLOPs.
pub(super) const FLOPS: &[Unit] = &[
    Unit { size: 1.0, name: "model FLOPs" },
    Unit { size: 1e6, name: "model MFLOPs (1e6)" },
    Unit { size: 1e9, name: "model GFLOPs (1e9)" },
    Unit { size: 1e12, name: "model TFLOPs (1e12)" },
    Unit { size: 1e15, name: "model PFLOPs (1e15)" },
    Unit { size: 1e18, name: "model EFLOPs (1e18)" },
];
/// Units of time.
pub(super) const SECONDS: &[Unit] =
    &[Unit { size: 1.0, name: "seconds" }, Unit { size: 60.0, name: "minutes" }, Unit { size: 3600.0, name: "hours" }];
/// Units of speed.
pub(super) const SPEED: &[Unit] = &[
    Unit { size: 1.0, name: "tokens/s" },
    Unit { size: 1e3, name: "thousand tokens/s" },
    Unit { size: 1e6, name: "million tokens/s" },
];
/// A number that is its own unit.
pub(super) const PLAIN: &[Unit] = &[Unit { size: 1.0, name: "" }];
/// Steps are never rescaled.
pub(super) const STEPS: &[Unit] = &[Unit { size: 1.0, name: "step" }];

/// The largest unit that leaves `max` at two or more, else the smallest.
pub(super) fn unit(units: &[Unit], max: f64) -> Unit {
    *units.iter().rev().find(|unit| max >= 2.0 * unit.size).unwrap_or(&units[0])
}

/// Multiples of 1, 2 or 5 times a power of ten in `low..=high`, about `count` of them, each with its label; all
/// labels have the same decimals.
pub(super) fn ticks(low: f64, high: f64, count: usize) -> Vec<(f64, String)> {
    let wanted = (high - low) / count.max(1) as f64;
    let power = wanted.log10().floor();
    // The last factor always fits: wanted < 10^(power + 1).
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * 10f64.powf(power) >= wanted);
    let step = factor.unwrap_or(10.0) * 10f64.powf(power);
    let decimals = (-(step.log10() + 1e-9).floor()).max(0.0) as usize;
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    (first..=last)
        .map(|index| {
            let value = index as f64 * step;
            let label = match (index, decimals) {
                (0, _) => "0".to_owned(),
                (_, 0..4) => format!("{value:.decimals$}"),
                _ => scientific(value),
            };
            (value, label)
        })
        .collect()
}

/// `0.0015` as `1.5e-3`.
fn scientific(value: f64) -> String {
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        None => text,
    }
}

/// A range of base units with its ticks and their labels.
pub(super) struct Axis {
    low: f64,
    high: f64,
    unit: Unit,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From `low` to `high`, which is larger, with about `count` ticks.
    pub(super) fn new(low: f64, high: f64, units: &[Unit], count: usize) -> Self {
        let unit = unit(units, high);
        let mut ticks = ticks(low / unit.size, high / unit.size, count);
        ticks.iter_mut().for_each(|(value, _)| *value *= unit.size);
        Self { low, high, unit, ticks }
    }

    /// Name of the unit.
    pub(super) fn unit_name(&self) -> &'static str {
        self.unit.name
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(value, _)| *value).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let found = self.ticks.iter().find(|(tick, _)| tick == value);
        found.map_or_else(String::new, |(_, label)| label.clone())
    }
}
