//! The page of one training run: key figures, loss over tokens and over compute with both stages on one axis,
//! learning rate, gradient norm and speed over steps, the table of stages, the sample, the configuration.

use super::axis::{self, Unit};
use super::chart::{Bottom, Chart, Line, Look};
use super::curve::{self, Points};
use super::figure::{Key, figure, legend};
use super::ink::Ink;
use super::number;
use super::{RunReport, page, patch_speed_up, scale};
use crate::error::Result;
use crate::train::metrics::{Record, StageKind};

pub(super) fn html(report: &RunReport) -> Result<String> {
    let mut body = key_figures(report);
    body.push_str(&format!(
        "<p class=\"verdict\">{}</p>\n",
        page::escape(&verdict(report))
    ));
    body.push_str(&charts(report)?);
    body.push_str(&page::section("Stages", &stage_table(report)));
    if !report.sample.is_empty() {
        let sample = page::quoted(&report.sample, "sample");
        body.push_str(&page::section(
            "Sample",
            &format!("{}{sample}", page::paragraph(SAMPLE_NOTE)),
        ));
    }
    body.push_str(&page::notes(&report.notes));
    body.push_str(&page::section(
        "Configuration",
        &page::quoted(&report.config_toml, "config"),
    ));
    let subtitle = format!(
        "Training run, {} parameters",
        number::grouped(report.parameters)
    );
    Ok(page::page(&report.title, &subtitle, &body))
}

const SAMPLE_NOTE: &str = "Written by the trained model, as it came.";

fn total(report: &RunReport) -> (u64, u64, f64, f64) {
    report.records.last().map_or((0, 0, 0.0, 0.0), |last| {
        (last.step, last.tokens, last.model_flops, last.seconds)
    })
}

fn key_figures(report: &RunReport) -> String {
    let (steps, tokens, flops, seconds) = total(report);
    let mut figures = Vec::new();
    if let Some(end) = report.evaluation {
        let from = |text: Option<String>| {
            text.map_or(String::new(), |text| format!("{text} at the start"))
        };
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
    figures.push((
        "Tokens read",
        number::compact(tokens),
        format!("in {} steps", number::grouped(steps)),
    ));
    figures.push((
        "Model FLOPs",
        number::flops(flops),
        format!("in {}", number::duration(seconds)),
    ));
    if let Some(ratio) = patch_speed_up(&report.stages) {
        let text = "tokens/s, patch stage over token stage".to_owned();
        figures.push((
            "Speed of patches",
            format!("{}×", number::short(ratio)),
            text,
        ));
    }
    page::figures(&figures)
}

fn verdict(report: &RunReport) -> String {
    let (steps, tokens, ..) = total(report);
    if report.evaluation.is_some() {
        return scale::sentences(report.parameters, tokens as f64);
    }
    let unfinished = format!(
        "This run has not finished: it is shown up to step {}. ",
        number::grouped(steps)
    );
    unfinished + &scale::sentences(report.parameters, tokens as f64)
}

/// x of the last record of each patch stage that a token stage follows.
fn switches(records: &[Record], x: impl Fn(&Record) -> f64) -> Vec<f64> {
    let switch = |pair: &&[Record]| pair[0].stage != pair[1].stage;
    records
        .windows(2)
        .filter(switch)
        .map(|pair| x(&pair[0]))
        .collect()
}

/// Raw values of `y` in both stages, faint, and over them their moving mean; stages are never mixed in a mean.
fn noisy(
    records: &[Record],
    x: impl Fn(&Record) -> f64 + Copy,
    y: impl Fn(&Record) -> f64 + Copy,
) -> Vec<Line> {
    let window = curve::window(records.len());
    let mut raw = Vec::new();
    let mut smooth = Vec::new();
    for stretch in records.chunk_by(|a, b| a.stage == b.stage) {
        let ink = Ink::of_stage(stretch[0].stage);
        let points = curve::points(stretch, x, |record| Some(y(record)));
        smooth.push(Line {
            ink,
            look: Look::Solid,
            points: curve::smooth(&points, window),
        });
        raw.push(Line {
            ink,
            look: Look::Faint,
            points,
        });
    }
    raw.append(&mut smooth);
    raw
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
    let records = &report.records;
    let mut lines = noisy(records, x, |record| record.loss);
    let has = |stage| records.iter().any(|record| record.stage == stage);
    let mut keys = Vec::new();
    if has(StageKind::Patch) {
        let text = "patch loss: one softmax against all tokens of the next patch, not comparable with a token loss";
        keys.push(Key::new(Ink::Patch, Look::Solid, text));
    }
    let above = curve::points(records, x, |record| record.loss_above_floor);
    if !above.is_empty() {
        let points = curve::smooth(&above, curve::window(records.len()));
        lines.push(Line {
            ink: Ink::Floor,
            look: Look::Solid,
            points,
        });
        let text = "patch loss above its floor, the entropy of the patch's bag of tokens";
        keys.push(Key::new(Ink::Floor, Look::Solid, text));
    }
    if has(StageKind::Token) {
        keys.push(Key::new(Ink::Token, Look::Solid, "token loss"));
    }
    let points = validation(report, x);
    if !points.is_empty() {
        lines.push(Line {
            ink: Ink::Validation,
            look: Look::Marked,
            points,
        });
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
        switches: switches(records, x),
    };
    figure(heading, &chart, &keys, caption)
}

fn charts(report: &RunReport) -> Result<String> {
    let records = &report.records;
    if records.len() < 2 {
        return Ok(page::paragraph(
            "Too few steps were recorded to draw a curve.",
        ));
    }
    let window = curve::window(records.len());
    let smoothing = format!(
        "Training losses are centred means over {window} recorded steps, within a stage (fewer at its ends); raw \
         values stand behind them, faint."
    );
    let mut html = loss_figure(
        report,
        "Loss over tokens read",
        axis::TOKENS,
        |record| record.tokens as f64,
        &smoothing,
    )?;
    html += &loss_figure(
        report,
        "Loss over compute",
        axis::FLOPS,
        |record| record.model_flops,
        "The same losses over model FLOPs: a patch of K tokens costs about as much as one token.",
    )?;
    html = page::section("Loss", &html);

    let step = |record: &Record| record.step as f64;
    let lr = records.chunk_by(|a, b| a.stage == b.stage).map(|stretch| {
        let points = curve::points(stretch, step, |record| Some(record.lr));
        Line {
            ink: Ink::of_stage(stretch[0].stage),
            look: Look::Solid,
            points,
        }
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
            switches: switches(records, step),
        };
        figure(heading, &chart, &[], "")
    };
    let mut row = small("Learning rate", "learning rate", axis::PLAIN, lr.collect())?;
    row += &small(
        "Gradient norm",
        "norm before clipping",
        axis::PLAIN,
        noisy(records, step, |r| r.grad_norm),
    )?;
    let speed = noisy(records, step, |record| record.tokens_per_second);
    row += &small("Throughput", "speed", axis::SPEED, speed)?;
    let keys = [
        Key::new(Ink::Patch, Look::Solid, "patch stage"),
        Key::new(Ink::Token, Look::Solid, "token stage"),
        Key::new(
            Ink::Axis,
            Look::Faint,
            "raw values, behind their centred means",
        ),
    ];
    let body = format!("{}<div class=\"row\">\n{row}</div>\n", legend(&keys));
    Ok(html + &page::section("Optimisation and speed", &body))
}

fn stage_table(report: &RunReport) -> String {
    let head = [
        "stage",
        "K",
        "steps",
        "tokens",
        "positions",
        "model FLOPs",
        "time",
        "tokens/s",
        "speed-up",
    ];
    let rate = |tokens: f64| number::grouped(tokens.round() as u64);
    let speed_up = patch_speed_up(&report.stages);
    let mut rows: Vec<Vec<String>> = Vec::new();
    for stage in &report.stages {
        let ratio = match stage.stage {
            StageKind::Patch => speed_up.map_or("–".to_owned(), |ratio| format!("{ratio:.2}×")),
            StageKind::Token => "1×".to_owned(),
        };
        rows.push(vec![
            stage.stage.name().to_owned(),
            stage.patch_size.to_string(),
            number::grouped(stage.steps),
            number::grouped(stage.tokens),
            number::grouped(stage.positions),
            number::flops(stage.model_flops),
            number::duration(stage.seconds),
            stage.tokens_per_second().map_or("–".to_owned(), rate),
            ratio,
        ]);
    }
    let note = "Speed-up: tokens read per second against the token stage.";
    page::table(&head, &rows) + &format!("<p class=\"aside\">{note}</p>\n")
}
