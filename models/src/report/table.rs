//! The table of a comparison, as cells for the page and as text for the terminal. With several seeds every measured
//! cell is mean ± sample standard deviation. Costs are per token read, relative to the first arm.

use comfy_table::{CellAlignment, Table, presets};

use super::number::{self, MeanSpread};
use super::{Arm, CompareReport, SeedRun};

/// The comparison as a table for a terminal: a row for each quantity, a column for each arm.
pub fn compare_table(report: &CompareReport) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(head(report));
    for row in rows(report) {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// Heads of the columns.
pub(super) fn head(report: &CompareReport) -> Vec<String> {
    let first = match report.arms.iter().map(|arm| arm.seeds.len()).max() {
        Some(2..) => format!("mean ± spread over {} seeds", report.arms[0].seeds.len()),
        _ => "one seed".to_owned(),
    };
    std::iter::once(first).chain(report.arms.iter().map(|arm| arm.name.clone())).collect()
}

/// Cells, the name of the quantity first.
pub(super) fn rows(report: &CompareReport) -> Vec<Vec<String>> {
    let row = |name: &str, cell: &dyn Fn(&Arm) -> Option<String>| {
        let cells = report.arms.iter().map(|arm| cell(arm).unwrap_or("–".to_owned()));
        std::iter::once(name.to_owned()).chain(cells).collect()
    };
    let over = |arm: &Arm, value: &dyn Fn(&SeedRun) -> f64| MeanSpread::of(arm.seeds.iter().map(value));
    let count = |value: f64| number::grouped(value.round() as u64);
    let fixed =
        |arm: &Arm, decimals, value: &dyn Fn(&SeedRun) -> f64| over(arm, value).map(|mean| mean.fixed(decimals));
    let cost = |arm: &Arm, spent: &dyn Fn(&SeedRun) -> f64| {
        let base = relative_to(report, spent)?;
        fixed(arm, 3, &|seed| spent(seed) / seed.tokens as f64 / base)
    };
    let formula = report.arms.first().map_or(1.0, |arm| arm.cost_by_formula);
    vec![
        row("cost per token, by formula", &|arm| Some(format!("{:.3}", arm.cost_by_formula / formula))),
        row("cost per token, in model FLOPs", &|arm| cost(arm, &|seed| seed.model_flops)),
        row("cost per token, in seconds", &|arm| cost(arm, &|seed| seed.seconds)),
        row("model FLOPs", &|arm| Some(number::flops(over(arm, &|seed| seed.model_flops)?.mean))),
        row("seconds", &|arm| fixed(arm, 1, &|seed| seed.seconds)),
        row("tokens read", &|arm| Some(count(over(arm, &|seed| seed.tokens as f64)?.mean))),
        row("epochs", &|arm| Some(format!("{:.2}", over(arm, &|seed| seed.epochs)?.mean))),
        row("validation loss (nats/token)", &|arm| fixed(arm, 4, &|seed| seed.evaluation.loss)),
        row("perplexity", &|arm| fixed(arm, 3, &|seed| seed.evaluation.perplexity())),
        row("bits per byte", &|arm| fixed(arm, 4, &|seed| seed.evaluation.bits_per_byte)),
    ]
}

/// What the first arm spends per token, the mean over its seeds.
fn relative_to(report: &CompareReport, spent: &dyn Fn(&SeedRun) -> f64) -> Option<f64> {
    let seeds = &report.arms.first()?.seeds;
    let base = MeanSpread::of(seeds.iter().map(|seed| spent(seed) / seed.tokens as f64))?.mean;
    (base > 0.0 && base.is_finite()).then_some(base)
}
