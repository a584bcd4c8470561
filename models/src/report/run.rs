//! The page of one training run: key figures, loss over tokens and over compute with both stages on one axis,
//! learning rate, gradient norm and speed over steps, the table of stages, the sample, the configuration.

use super::axis::{self, Unit};
use super::chart::{Bottom, Chart, Line, Look, Switch};
use super::curve::{self, Points};
use super::figure::{Key, figure, legend};
use super::ink::Ink;
use super::number;
use super::{RunReport, StageSummary, page, patch_speed_up, scale};
use crate::error::Result;
use crate::train::metrics::Record;
use crate::train::stages::StageName;

pub(super) fn html(report: &RunReport) -> Result<String> {
    let mut body = key_figures(report);
    body.push_str(&format!("<p class=\"verdict\">{}</p>\n", page::escape(&verdict(report))));
    body.push_str(&charts(report)?);
    body.push_str(&page::section("Stages", &stage_table(report)));
    if !report.sample.is_empty() {
        let sample = page::quoted(&report.sample, "sample");
        body.push_str(&page::section("Sample", &format!("{}{sample}", page::paragraph(SAMPLE_NOTE))));
    }
    body.push_str(&page::notes(&report.notes));
    body.push_str(&page::section("Configuration", &page::quoted(&report.config_toml, "config")));
    let subtitle = format!("Training run, {} parameters", number::grouped(report.parameters));
    Ok(page::page(&report.title, &subtitle, &body))
}

const SAMPLE_NOTE: &str = "Written by the trained model, as it came.";

fn total(report: &RunReport) -> (u64, u64, f64, f64) {
    report.records.last().map_or((0, 0, 0.0, 0.0), |last| (last.step, last.tokens, last.model_flops, last.seconds))
}

fn key_figures(report: &RunReport) -> String {
    let (steps, tokens, flops, seconds) = total(report);
    let mut figures = Vec::new();
    if let Some(end) = report.evaluation {
        let from = |text: Option<String>| text.map_or(String::new(), |text| format!("{text} at the start"));
        let start = report.initial;
        figures.push((
            "Validation loss",
            format!("{:.4}", end.loss),
            from(start.map(|start| format!("nats per token, {:.2}", start.loss))),
        ));
        figures.push((
            "Perplexity",
            number::short(end.perplexity()),
            from(start.map(|start| format!("per token, {}", number::short(start.perplexity())))),
        ));
        figures.push((
            "Bits per byte",
            format!("{:.4}", end.bits_per_byte),
            from(start.map(|start| format!("of text, {:.2}", start.bits_per_byte))),
        ));
    }
    figures.push(("Tokens read", number::compact(tokens), format!("in {} steps", number::grouped(steps))));
    figures.push(("Model FLOPs", number::flops(flops), format!("in {}", number::duration(seconds))));
    let stages = StageSummary::from_records(&report.records, &report.stages);
    if let Some(ratio) = patch_speed_up(&stages) {
        let text = "tokens/s, patch stage over token stage".to_owned();
        figures.push(("Speed of patches", format!("{}×", number::short(ratio)), text));
    }
    page::figures(&figures)
}

fn verdict(report: &RunReport) -> String {
    let (steps, tokens, ..) = total(report);
    if report.evaluation.is_some() {
        return scale::sentences(report.parameters, tokens as f64);
    }
    let unfinished = format!("This run has not finished: it is shown up to step {}. ", number::grouped(steps));
    unfinished + &scale::sentences(report.parameters, tokens as f64)
}

/// The records of one stage, with its summary.
struct Stretch<'a> {
    summary: StageSummary,
    records: &'a [Record],
}

/// The run cut into its stages.
fn stretches(report: &RunReport) -> Vec<Stretch<'_>> {
    let mut rest = report.records.as_slice();
    let mut end = 0;
    let mut stretches = Vec::new();
    for summary in StageSummary::from_records(&report.records, &report.stages) {
        end += summary.steps;
        let records;
        (records, rest) = rest.split_at(rest.partition_point(|record| record.step <= end));
        stretches.push(Stretch { summary, records });
    }
    stretches
}

/// Where two stages meet.
fn switches(stretches: &[Stretch<'_>], x: impl Fn(&Record) -> f64) -> Vec<Switch> {
    let switch = |pair: &[Stretch<'_>]| {
        let (before, after) = (pair[0].summary.label(), pair[1].summary.label());
        Some(Switch { x: x(pair[0].records.last()?), before, after })
    };
    stretches.windows(2).filter_map(switch).collect()
}

/// Raw values of `y`, faint, and over them their moving means; stages are never mixed in a mean.
fn noisy(stretches: &[Stretch<'_>], x: impl Fn(&Record) -> f64 + Copy, y: impl Fn(&Record) -> f64 + Copy) -> Vec<Line> {
    let mut raw = Vec::new();
    for stretch in stretches {
        let points = curve::points(stretch.records, x, |record| Some(y(record)));
        raw.push(Line { ink: Ink::of_stage(stretch.summary.stage), look: Look::Faint, points });
    }
    let window = window(stretches);
    let mean = |line: &Line| Line { ink: line.ink, look: Look::Solid, points: curve::smooth(&line.points, window) };
    let means: Vec<Line> = raw.iter().map(mean).collect();
    raw.into_iter().chain(means).collect()
}

/// Width of the moving mean of the whole run.
fn window(stretches: &[Stretch<'_>]) -> usize {
    curve::window(stretches.iter().map(|stretch| stretch.records.len()).sum())
}

/// Validation loss at the start, wherever it was evaluated, and at the end.
fn validation(report: &RunReport, x: impl Fn(&Record) -> f64 + Copy) -> Points {
    let mut points = curve::points(&report.records, x, |record| record.val_loss);
    if let Some(initial) = report.initial {
        points.insert(0, (0.0, initial.loss));
    }
    if let (Some(end), Some(last)) = (report.evaluation, report.records.last())
        && last.val_loss.is_none()
    {
        points.push((x(last), end.loss));
    }
    points
}

fn loss_figure(
    report: &RunReport,
    heading: &str,
    units: &[Unit],
    x: impl Fn(&Record) -> f64 + Copy,
    caption: &str,
) -> Result<String> {
    let stretches = stretches(report);
    let mut lines = noisy(&stretches, x, |record| record.loss);
    let has = |stage| stretches.iter().any(|stretch| stretch.summary.stage == stage);
    let mut keys = Vec::new();
    if has(StageName::Patch) {
        let text = "patch loss: one softmax against all tokens of the next patch, not comparable with a token loss";
        keys.push(Key::new(Ink::Patch, Look::Solid, text));
    }
    let floors = lines.len();
    for stretch in &stretches {
        let above = curve::points(stretch.records, x, |record| record.loss_above_floor);
        if !above.is_empty() {
            let points = curve::smooth(&above, window(&stretches));
            lines.push(Line { ink: Ink::Floor, look: Look::Solid, points });
        }
    }
    if lines.len() > floors {
        let text = "patch loss above its floor, the entropy of the patch's bag of tokens";
        keys.push(Key::new(Ink::Floor, Look::Solid, text));
    }
    if has(StageName::Token) {
        keys.push(Key::new(Ink::Token, Look::Solid, "token loss"));
    }
    let points = validation(report, x);
    if !points.is_empty() {
        lines.push(Line { ink: Ink::Validation, look: Look::Marked, points });
        let text = "validation loss: token level, the same windows in both stages";
        keys.push(Key::new(Ink::Validation, Look::Marked, text));
    }
    let chart = Chart {
        label: heading,
        size: (1010, 400),
        x_units: units,
        y_units: axis::PLAIN,
        y_name: "loss (nats per token)",
        bottom: Bottom::Lowest,
        left: 0.0,
        lines,
        switches: switches(&stretches, x),
    };
    figure(heading, &chart, &keys, caption)
}

fn charts(report: &RunReport) -> Result<String> {
    let stretches = stretches(report);
    if report.records.len() < 2 {
        return Ok(page::paragraph("Too few steps were recorded to draw a curve."));
    }
    let window = window(&stretches);
    let smoothing = format!(
        "Training losses are centred means over {window} recorded steps, within a stage (fewer at its ends); raw \
         values stand behind them, faint."
    );
    let mut html =
        loss_figure(report, "Loss over tokens read", axis::TOKENS, |record| record.tokens as f64, &smoothing)?;
    html += &loss_figure(
        report,
        "Loss over compute",
        axis::FLOPS,
        |record| record.model_flops,
        "The same losses over model FLOPs: a patch of K tokens costs about as much as one token.",
    )?;
    html = page::section("Loss", &html);

    let step = |record: &Record| record.step as f64;
    let lr = stretches.iter().map(|stretch| {
        let points = curve::points(stretch.records, step, |record| Some(record.lr));
        Line { ink: Ink::of_stage(stretch.summary.stage), look: Look::Solid, points }
    });
    let small = |heading: &str, name: &str, units: &[Unit], lines: Vec<Line>| {
        let chart = Chart {
            label: heading,
            size: (330, 230),
            x_units: axis::STEPS,
            y_units: units,
            y_name: name,
            bottom: Bottom::Zero,
            left: 0.0,
            lines,
            switches: switches(&stretches, step),
        };
        figure(heading, &chart, &[], "")
    };
    let mut row = small("Learning rate", "learning rate", axis::PLAIN, lr.collect())?;
    row += &small("Gradient norm", "norm before clipping", axis::PLAIN, noisy(&stretches, step, |r| r.grad_norm))?;
    let speed = noisy(&stretches, step, |record| record.tokens_per_second);
    row += &small("Throughput", "speed", axis::SPEED, speed)?;
    let keys = [
        Key::new(Ink::Patch, Look::Solid, "patch stage"),
        Key::new(Ink::Token, Look::Solid, "token stage"),
        Key::new(Ink::Axis, Look::Faint, "raw values, behind their centred means"),
    ];
    let body = format!("{}<div class=\"row\">\n{row}</div>\n", legend(&keys));
    Ok(html + &page::section("Optimisation and speed", &body))
}

fn stage_table(report: &RunReport) -> String {
    let head = ["stage", "K", "steps", "tokens", "positions", "model FLOPs", "time", "tokens/s", "speed-up"];
    let stages = StageSummary::from_records(&report.records, &report.stages);
    let speed = |stage: &StageSummary| stage.tokens_per_second();
    let base = stages.iter().find(|stage| stage.stage == StageName::Token).and_then(speed);
    let or_dash = |text: Option<String>| text.unwrap_or("–".to_owned());
    let row = |stage: &StageSummary| {
        let ratio = speed(stage).zip(base).map(|(speed, base)| format!("{:.2}×", speed / base));
        vec![
            stage.stage.name().to_owned(),
            stage.patch_size.to_string(),
            number::grouped(stage.steps),
            number::grouped(stage.tokens),
            number::grouped(stage.positions),
            number::flops(stage.model_flops),
            number::duration(stage.seconds),
            or_dash(speed(stage).map(|speed| number::grouped(speed.round() as u64))),
            or_dash(ratio),
        ]
    };
    let rows: Vec<Vec<String>> = stages.iter().map(row).collect();
    let note = "Speed-up: tokens read per second against the token stage.";
    page::table(&head, &rows) + &format!("<p class=\"aside\">{note}</p>\n")
}
