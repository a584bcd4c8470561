//! How numbers are written: grouped counts, FLOPs, durations, and a mean with its spread over seeds (sample standard deviation, n - 1).

/// `1234567` as `1,234,567`.
pub(super) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count at a glance: `11.99 M`; below ten thousand all its digits.
pub(super) fn compact(value: u64) -> String {
    let exact = value as f64;
    match value {
        0..10_000 => grouped(value),
        10_000..1_000_000 => format!("{:.1} k", exact / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", exact / 1e6),
        _ => format!("{:.2} B", exact / 1e9),
    }
}

/// Model FLOPs: `3.00e13`.
pub(super) fn flops(value: f64) -> String {
    format!("{value:.2e}")
}

/// Three significant digits or so, without an exponent: `0.0123`, `1.23`, `12.3`, `123`.
pub(super) fn short(value: f64) -> String {
    let magnitude = if value == 0.0 { 0.0 } else { value.abs().log10().floor() };
    format!("{value:.*}", (2.0 - magnitude).clamp(0.0, 6.0) as usize)
}

/// `38.2 s`, `4 min 07 s`, `2 h 05 min`.
pub(super) fn duration(seconds: f64) -> String {
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole / 3600 {
        0 => format!("{} min {:02} s", whole / 60, whole % 60),
        hours => format!("{} h {:02} min", hours, whole % 3600 / 60),
    }
}

/// Mean of some values and how far they spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MeanSpread {
    pub(super) mean: f64,
    /// Sample standard deviation; one value alone has none.
    pub(super) spread: Option<f64>,
}

impl MeanSpread {
    /// Of at least one value.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let count = values.len() as f64;
        if values.is_empty() {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Some(Self { mean, spread: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()) })
    }

    /// Half the width of the 95% confidence interval of the mean of `count` values, by Student's t; beyond eleven
    /// values the last quantile of the table serves, which is a little wide.
    pub(super) fn half_width_95(&self, count: usize) -> Option<f64> {
        const QUANTILES: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
        let freedom = count.checked_sub(1)?;
        let quantile = QUANTILES.get(freedom.checked_sub(1)?).unwrap_or(&QUANTILES[9]);
        Some(quantile * self.spread? / (count as f64).sqrt())
    }

    /// `2.331 ± 0.012`, or the mean alone.
    pub(super) fn fixed(&self, decimals: usize) -> String {
        self.with(|value| format!("{value:.decimals$}"))
    }

    /// Mean and spread in a format of the caller's.
    pub(super) fn with(&self, format: impl Fn(f64) -> String) -> String {
        match self.spread {
            Some(spread) => format!("{} ± {}", format(self.mean), format(spread)),
            None => format(self.mean),
        }
    }
}
