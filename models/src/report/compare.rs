//! The page of a comparison: the table, what it says in words, and validation loss over compute, tokens and time with
//! every seed behind the mean of its arm.

use super::axis::{self, Unit};
use super::chart::{Bottom, Chart, Line, Look, Switch};
use super::curve::{self, Points};
use super::figure::{Key, figure};
use super::ink::Ink;
use super::number::{self, MeanSpread};
use super::{Arm, CompareReport, SeedRun, page, scale, table};
use crate::error::Result;
use crate::train::metrics::Record;
use crate::train::stages::EqualBudget;

/// Share of the run, from its end, that the enlarged chart shows.
const ENLARGED: f64 = 0.25;

pub(super) fn html(report: &CompareReport) -> Result<String> {
    let mut body = format!("<p class=\"verdict\">{}</p>\n", page::escape(&outcome(report)));
    let tokens = report.arms.iter().flat_map(|arm| &arm.seeds).map(|seed| seed.tokens as f64);
    let most = tokens.fold(0.0, f64::max);
    body += &format!("<p class=\"verdict\">{}</p>\n", page::escape(&scale::sentences(report.parameters, most)));
    let note = "Costs are relative to the first arm. By formula: lambda/K + 1 - lambda, for a share lambda of the \
                tokens read in patches of K. Spread: sample standard deviation over seeds.";
    let cells = page::table(&table::head(report), &table::rows(report));
    body += &page::section("Result", &format!("{cells}<p class=\"aside\">{note}</p>\n"));
    body += &page::section("Validation loss", &charts(report)?);
    body += &page::notes(&report.notes);
    body += &page::section("Configuration", &page::quoted(&report.config_toml, "config"));
    let budget = match report.budget {
        EqualBudget::Compute => "equal model FLOPs",
        EqualBudget::Tokens => "equal tokens",
    };
    let seeds = report.arms.iter().map(|arm| arm.seeds.len()).max().unwrap_or(0);
    let seeds = if seeds == 1 { "one seed".to_owned() } else { format!("{seeds} seeds") };
    let parameters = number::grouped(report.parameters);
    let subtitle = format!("Comparison at {budget}, {seeds}, {parameters} parameters");
    Ok(page::page(&report.title, &subtitle, &body))
}

/// What the numbers say, and how far they can be trusted.
fn outcome(report: &CompareReport) -> String {
    let [base, others @ ..] = report.arms.as_slice() else {
        return "No arm has finished.".to_owned();
    };
    let sentences: Vec<String> = others.iter().filter_map(|arm| difference(base, arm)).collect();
    sentences.join(" ")
}

/// How far an arm ends from the baseline, seed against the same seed.
fn difference(base: &Arm, arm: &Arm) -> Option<String> {
    let bits = |seed: &SeedRun| seed.evaluation.bits_per_byte;
    let gaps: Vec<f64> = base.seeds.iter().zip(&arm.seeds).map(|(a, b)| bits(b) - bits(a)).collect();
    let gap = MeanSpread::of(gaps.iter().copied())?;
    let side = if gap.mean < 0.0 { "below" } else { "above" };
    let text = format!("“{}” ends {:.4} bits per byte {side} “{}”", arm.name, gap.mean.abs(), base.name);
    let Some(half) = gap.half_width_95(gaps.len()) else {
        return Some(format!(
            "{text}, with one seed. Seeds of one and the same regime differ too, so a single run decides nothing; a \
             comparison over several seeds gives the spread."
        ));
    };
    let lower = gaps.iter().filter(|gap| **gap < 0.0).count();
    let (from, to) = (gap.mean - half, gap.mean + half);
    let verdict = if from < 0.0 && to > 0.0 {
        "which holds zero: no difference has been shown"
    } else {
        "which does not hold zero"
    };
    Some(format!(
        "{text}: the mean over {} seeds, each against the same seed of the other; it is lower in {lower} of them. The \
         95% confidence interval of the difference (Student’s t) is {from:+.4} to {to:+.4}, {verdict}.",
        gaps.len()
    ))
}

/// Validation loss of one seed, the evaluations before the first step and after the last included.
fn seed_points(seed: &SeedRun, x: impl Fn(&Record) -> f64) -> Points {
    let mut points = curve::points(&seed.records, &x, |record| record.val_loss);
    if let Some(initial) = seed.initial {
        points.insert(0, (0.0, initial.loss));
    }
    if let Some(last) = seed.records.last()
        && last.val_loss.is_none()
    {
        points.push((x(last), seed.evaluation.loss));
    }
    points
}

/// The seeds of an arm, faint, and their mean.
fn arm_lines(arm: &Arm, ink: Ink, x: impl Fn(&Record) -> f64 + Copy) -> Vec<Line> {
    let seeds: Vec<Points> = arm.seeds.iter().map(|seed| seed_points(seed, x)).collect();
    let mut lines = Vec::new();
    if let Some(points) = curve::mean(&seeds) {
        lines.push(Line { ink, look: Look::Marked, points });
    }
    if seeds.len() > 1 {
        lines.extend(seeds.into_iter().map(|points| Line { ink, look: Look::Faint, points }));
    }
    lines
}

fn loss_figure(
    report: &CompareReport,
    heading: &str,
    units: &[Unit],
    enlarged: bool,
    x: impl Fn(&Record) -> f64 + Copy,
    caption: &str,
) -> Result<String> {
    let inks = (0..report.arms.len()).map(Ink::of_arm);
    let arms = || report.arms.iter().zip(inks.clone());
    // Means lie over all the seeds.
    let mut lines: Vec<Line> = arms().flat_map(|(arm, ink)| arm_lines(arm, ink, x)).collect();
    lines.sort_by_key(|line| line.look == Look::Marked);
    let right = lines.iter().flat_map(|line| &line.points).map(|point| point.0).fold(0.0, f64::max);
    let legend: Vec<Key> = arms().map(|(arm, ink)| Key::new(ink, Look::Marked, &arm.name)).collect();
    let chart = Chart {
        label: heading,
        size: (1010, 360),
        x_units: units,
        y_units: axis::PLAIN,
        y_name: "validation loss (nats per token)",
        bottom: Bottom::Lowest,
        left: if enlarged { right * (1.0 - ENLARGED) } else { 0.0 },
        lines,
        switches: switches(report, x),
    };
    figure(heading, &chart, &legend, caption)
}

/// Mean x at which the arms with patches switch to tokens.
fn switches(report: &CompareReport, x: impl Fn(&Record) -> f64) -> Vec<Switch> {
    let of_seed =
        |seed: &SeedRun| seed.records.windows(2).find(|pair| pair[0].stage != pair[1].stage).map(|pair| x(&pair[0]));
    let of_arm = |arm: &Arm| MeanSpread::of(arm.seeds.iter().filter_map(of_seed));
    let switch = |x: MeanSpread| Switch { x: x.mean, before: "patches".to_owned(), after: "tokens".to_owned() };
    report.arms.iter().filter_map(of_arm).map(switch).collect()
}

fn charts(report: &CompareReport) -> Result<String> {
    let several = report.arms.iter().any(|arm| arm.seeds.len() > 1);
    let how = if several { "Marked lines are means over seeds; each seed stands behind, faint." } else { "" };
    let flops = |record: &Record| record.model_flops;
    let tokens = |record: &Record| record.tokens as f64;
    let seconds = |record: &Record| record.seconds;
    let mut html = loss_figure(report, "Over compute", axis::FLOPS, false, flops, how)?;
    html += &loss_figure(report, "Over compute, the last quarter enlarged", axis::FLOPS, true, flops, "")?;
    html += &loss_figure(report, "Over tokens read", axis::TOKENS, false, tokens, "")?;
    html += &loss_figure(report, "Over time", axis::SECONDS, false, seconds, "")?;
    Ok(html)
}
