//! Reports of made-up runs: pages stand alone and hold no foreign markup, every drawn colour has a rule for both
//! schemes, and the numbers in tables, sentences and curves are those computed by hand.

use std::path::PathBuf;

use super::axis::{self, Axis};
use super::number::{self, MeanSpread};
use super::synthetic::{PARAMETERS, comparison, evaluation, plan, records, run};
use super::*;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};

/// Attributes `name="value"` of a page.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    html.split(start.as_str()).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// Panics unless every tag that opens is closed in order; void and self-closing tags aside.
fn assert_balanced(html: &str) {
    let mut open = Vec::new();
    for part in html.split('<').skip(1) {
        let tag = part.split('>').next().unwrap();
        let name: String = tag.chars().take_while(|c| c.is_alphanumeric() || *c == '/').collect();
        if let Some(closed) = name.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(closed), "before `<{}`", &part[..part.len().min(60)]);
        } else if !tag.starts_with('!') && !tag.ends_with('/') && name != "meta" {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

fn assert_stands_alone(html: &str) {
    for foreign in ["http", "<script", "<link", "<img", "<iframe", "src=", "href=", "url(", "@import", "javascript"] {
        assert!(!html.contains(foreign), "the page holds `{foreign}`");
    }
    assert!(html.starts_with("<!DOCTYPE html>") && html.contains("<meta charset=\"utf-8\">"));
    assert!(html.contains("prefers-color-scheme:dark"));
    assert_balanced(html);
}

#[test]
fn pages_stand_alone() {
    assert_stands_alone(&run().html().unwrap());
    for seeds in [1, 3] {
        assert_stands_alone(&comparison(seeds).html().unwrap());
    }
}

#[test]
fn text_from_outside_is_escaped() {
    let html = run().html().unwrap();
    assert!(html.contains("<title>runs/first &lt;b&gt;try&lt;/b&gt; &amp; more</title>"));
    assert!(html.contains("name = &quot;&lt;/pre&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;"));
    assert!(html.contains("burn bright &lt;&amp;&gt; so,\nThe more"));
    assert!(!html.contains('\u{1}') && html.contains('\u{fffd}'), "controls become replacement characters");
    let mut report = comparison(2);
    report.title = "<i>t</i>".to_owned();
    report.config_toml = "a = \"<u>\"".to_owned();
    report.arms[1].name = "<em>patches</em> & \"more\"".to_owned();
    report.notes = vec!["<s>note</s>".to_owned()];
    let html = report.html().unwrap();
    for tag in ["<i>", "<u>", "<em>", "<s>"] {
        assert!(!html.contains(tag), "{tag}");
    }
    assert!(html.contains("&lt;em&gt;patches&lt;/em&gt; &amp; &quot;more&quot;"));
    assert_balanced(&html);
}

#[test]
fn every_drawn_color_has_a_rule() {
    for html in [run().html().unwrap(), comparison(2).html().unwrap()] {
        let mut drawn = 0;
        for property in ["stroke", "fill"] {
            for color in attributes(&html, property).into_iter().filter(|color| *color != "none") {
                drawn += 1;
                let rule = format!("svg [{property}=\"{color}\"]{{{property}:var(--");
                assert!(html.contains(&rule), "no rule for {property} {color}");
            }
        }
        assert!(drawn > 50, "only {drawn} coloured marks");
    }
}

#[test]
fn a_run_shows_its_charts_and_numbers() {
    let report = run();
    let html = report.html().unwrap();
    let charts = ["Loss over tokens read", "Loss over compute", "Learning rate", "Gradient norm", "Throughput"];
    assert_eq!(attributes(&html, "aria-label"), charts);
    assert_eq!(html.matches("\npatches of 4\n</text>").count(), 2);
    let last = report.records.last().unwrap();
    let ratio = last.tokens as f64 / PARAMETERS as f64;
    assert!(html.contains(&format!("{ratio:.1} training tokens per parameter")));
    let end = report.evaluation.unwrap();
    for number in [
        format!("{:.4}", end.loss),
        format!("{:.4}", end.loss / std::f64::consts::LN_2),
        format!("{:.2}", end.loss.exp()),
        "7,995,392".to_owned(),
        "3,997,696".to_owned(),
        "3.06e13".to_owned(),
    ] {
        assert!(html.contains(&number), "{number}");
    }
    assert!(html.contains("not comparable with a token loss") && html.contains("centred means over 29"));
}

#[test]
fn a_run_of_tokens_alone_speaks_of_no_patches_in_its_legend() {
    let mut report = run();
    report.records = records(200, 0, 3);
    report.stages = plan(200, 0);
    let html = report.html().unwrap();
    assert!(!html.contains("patch loss") && html.contains("token loss"));
    let stages = StageSummary::from_records(&report.records, &report.stages);
    assert_eq!(stages.len(), 1);
    assert_eq!(patch_speed_up(&stages), None);
}

#[test]
fn runs_that_are_short_unfinished_or_broken_still_have_a_page() {
    let mut report = run();
    report.evaluation = None;
    assert!(report.html().unwrap().contains("has not finished: it is shown up to step 1,464"));
    for record in report.records.iter_mut().step_by(7) {
        (record.loss, record.grad_norm) = (f64::NAN, f64::INFINITY);
    }
    let html = report.html().unwrap();
    let drawn: String = attributes(&html, "points").concat();
    assert!(!drawn.is_empty() && drawn.chars().all(|c| c.is_ascii_digit() || " ,-".contains(c)), "finite pixels");
    for length in [0, 1, 2] {
        report.records.truncate(0);
        report.records.extend(records(length, length / 2, 1));
        report.stages = plan(length, length / 2);
        assert_stands_alone(&report.html().unwrap());
    }
    let mut empty = comparison(1);
    empty.arms.clear();
    assert_stands_alone(&empty.html().unwrap());
    assert!(!compare_table(&empty).is_empty());
}

#[test]
fn a_long_run_has_a_small_page() {
    let mut report = run();
    report.records = records(60_000, 20_000, 1);
    report.stages = plan(60_000, 20_000);
    let length = report.html().unwrap().len();
    assert!(length < 600_000, "{length} bytes");
}

#[test]
fn what_a_run_can_show_depends_on_its_tokens_per_parameter() {
    let small = scale::sentences(1_000_000, 20e6);
    assert!(small.contains("20.0 training tokens per parameter") && small.contains("It is not enough"), "{small}");
    let large = scale::sentences(1_000_000, 400e6);
    assert!(large.contains("400 training tokens") && !large.contains("not enough"), "{large}");
}

#[test]
fn patch_stages_of_several_sizes_are_kept_apart() {
    let mut report = run();
    let mut second = report.stages[0].clone();
    report.stages[0].steps = 300;
    (second.first_step, second.steps) = (300, 188);
    second.regime.input_patch = 2;
    report.stages.insert(1, second);
    // The loss of the second stage is another loss: no mean may lie between the two.
    report.records[300..488].iter_mut().for_each(|record| record.loss = 9.0);
    let html = report.html().unwrap();
    for name in ["patches of 4", "patches of 2", "tokens"] {
        assert!(html.contains(&format!("\n{name}\n</text>")), "{name}");
    }
    let stages = StageSummary::from_records(&report.records, &report.stages);
    assert_eq!(stages.iter().map(|stage| stage.steps).collect::<Vec<_>>(), [300, 188, 976]);
    let bold = html.split("stroke=\"#0072B2\" stroke-width=\"8\" points=\"").nth(2).unwrap();
    let heights: Vec<&str> =
        bold.split('"').next().unwrap().split_whitespace().map(|xy| xy.split(',').nth(1).unwrap()).collect();
    assert!(heights.iter().all(|height| *height == heights[0]), "the mean of nines is nine");
}

#[test]
fn stages_are_differences_of_the_counters() {
    let stages = StageSummary::from_records(&records(30, 10, 1), &plan(30, 10));
    let [patch, token] = stages.as_slice() else { panic!("{stages:?}") };
    assert_eq!((patch.stage, patch.patch_size, patch.steps), (StageName::Patch, 4, 10));
    assert_eq!((token.stage, token.patch_size, token.steps), (StageName::Token, 1, 20));
    assert_eq!((patch.tokens, patch.positions), (10 * 4096 * 4, 10 * 4096));
    assert_eq!((token.tokens, token.positions), (20 * 4096, 20 * 4096));
    assert!((token.model_flops / patch.model_flops - 2.0).abs() < 1e-12);
    let rate = |stage: &StageSummary| stage.tokens as f64 / stage.seconds;
    assert_eq!(patch.tokens_per_second(), Some(rate(patch)));
    assert_eq!(patch_speed_up(&stages), Some(rate(patch) / rate(token)));
}

/// A comparison whose figures are easy to follow: two seeds, losses 1.0 and 1.2 against 1.3 and 1.4.
fn by_hand() -> CompareReport {
    let mut report = comparison(2);
    for (arm, (losses, tokens)) in report.arms.iter_mut().zip([([1.0, 1.2], 1_000_000), ([1.3, 1.4], 2_000_000)]) {
        for (seed, loss) in arm.seeds.iter_mut().zip(losses) {
            seed.evaluation = Evaluation { loss, bits_per_byte: 2.0 * loss };
            (seed.tokens, seed.epochs, seed.model_flops, seed.seconds) = (tokens, 0.25, 4e12, 60.0);
        }
    }
    report
}

#[test]
fn the_table_holds_means_and_spreads() {
    let rows = table::rows(&by_hand());
    let row = |name: &str| rows.iter().find(|row| row[0].starts_with(name)).unwrap()[1..].to_vec();
    assert_eq!(row("cost per token, by formula"), ["1.000", "0.500"]);
    assert_eq!(row("cost per token, in model FLOPs"), ["1.000 ± 0.000", "0.500 ± 0.000"]);
    assert_eq!(row("cost per token, in seconds"), ["1.000 ± 0.000", "0.500 ± 0.000"]);
    assert_eq!(row("model FLOPs"), ["4.00e12", "4.00e12"]);
    assert_eq!(row("tokens read"), ["1,000,000", "2,000,000"]);
    assert_eq!(row("epochs"), ["0.25", "0.25"]);
    assert_eq!(row("validation loss"), ["1.1000 ± 0.1414", "1.3500 ± 0.0707"]);
    assert_eq!(row("bits per byte"), ["2.2000 ± 0.2828", "2.7000 ± 0.1414"]);
    let perplexity = MeanSpread::of([1f64.exp(), 1.2f64.exp()]).unwrap();
    assert_eq!(row("perplexity")[0], perplexity.fixed(3));
    let text = compare_table(&by_hand());
    assert!(text.contains("mean ± spread over 2 seeds") && text.contains("1.3500 ± 0.0707"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() < 100), "{text}");
}

#[test]
fn the_outcome_is_stated_with_its_uncertainty() {
    // Differences 0.6 and 0.4: mean 0.5, standard error 0.1, t = 12.706 with one degree of freedom.
    let html = by_hand().html().unwrap();
    assert!(html.contains("ends 0.5000 bits per byte above"));
    assert!(html.contains("lower in 0 of them"));
    assert!(html.contains("is -0.7706 to +1.7706, which holds zero: no difference has been shown"));
    let mut one = by_hand();
    one.arms.iter_mut().for_each(|arm| arm.seeds.truncate(1));
    let html = one.html().unwrap();
    assert!(html.contains("a single run decides nothing") && !html.contains('±'));
}

#[test]
fn a_comparison_shows_every_seed_behind_the_mean() {
    let lines = |seeds| comparison(seeds).html().unwrap().matches("opacity=\"0.28\"").count();
    assert_eq!(lines(1), 0);
    // Four charts, two arms.
    assert_eq!(lines(3), 4 * 2 * 3);
    let curves = [vec![(0.0, 4.0), (2.0, 2.0)], vec![(0.0, 6.0), (4.0, 3.0), (5.0, 1.0)]];
    assert_eq!(curve::mean(&curves), Some(vec![(0.0, 5.0), (3.0, 2.5)]));
    assert_eq!(curve::mean(&[]), None);
}

#[test]
fn smoothing_keeps_lines_straight_and_averages_noise() {
    let line: Vec<_> = (0..40).map(|x| (f64::from(x), 3.0 - 0.5 * f64::from(x))).collect();
    let smooth = curve::smooth(&line, 9);
    assert!(smooth[..36].iter().zip(&line).all(|(a, b)| (a.1 - b.1).abs() < 1e-12 && a.0 == b.0));
    // The last window holds points 35 to 39, whose mean lies at 37.
    assert!((smooth[39].1 - line[37].1).abs() < 1e-12);
    assert_eq!(curve::smooth(&line[..1], 9), line[..1]);
    let steps: Vec<_> = (0..9).map(|x| (f64::from(x), f64::from(x % 3))).collect();
    assert!(curve::smooth(&steps, 3)[1..8].iter().all(|point| (point.1 - 1.0).abs() < 1e-12));
    assert_eq!([0, 49, 100, 1464, 5000].map(curve::window), [1, 1, 3, 29, 101]);
}

#[test]
fn thinning_keeps_order_and_extremes() {
    let noisy: Vec<_> = (0..10_007).map(|x| (f64::from(x), f64::from(x * 7919 % 1000))).collect();
    let thin = curve::thin(&noisy, 100);
    assert!(thin.len() <= 200 && thin.is_sorted_by(|a, b| a.0 < b.0));
    let highest = |points: &[(f64, f64)]| points.iter().map(|point| point.1).fold(0.0, f64::max);
    assert_eq!(highest(&thin), highest(&noisy));
    assert_eq!(curve::thin(&noisy[..50], 100), noisy[..50]);
}

#[test]
fn curves_are_cut_where_they_cross_the_edge() {
    let line = [(0.0, 8.0), (2.0, 0.0), (4.0, 8.0), (5.0, 8.0)];
    let pieces = curve::cut(&line, 0.0, 0.0, 4.0);
    assert_eq!(pieces, [vec![(1.0, 4.0), (2.0, 0.0), (3.0, 4.0)]]);
    assert_eq!(curve::cut(&line, 1.5, -1.0, 9.0), [vec![(1.5, 2.0), (2.0, 0.0), (4.0, 8.0), (5.0, 8.0)]]);
    let pieces = curve::cut(&line, 0.0, 2.0, 9.0);
    assert_eq!(pieces, [vec![(0.0, 8.0), (1.5, 2.0)], vec![(2.5, 2.0), (4.0, 8.0), (5.0, 8.0)]]);
    assert!(curve::cut(&line, 0.0, 9.0, 10.0).is_empty());
    assert!(curve::cut(&line[..1], 0.0, 0.0, 9.0).is_empty());
}

#[test]
fn ticks_are_round_and_labelled_alike() {
    let labels = |low, high, count| axis::ticks(low, high, count).into_iter().map(|tick| tick.1).collect::<Vec<_>>();
    assert_eq!(labels(0.0, 11.9, 9), ["0", "2", "4", "6", "8", "10"]);
    assert_eq!(labels(1.3, 2.6, 6), ["1.5", "2.0", "2.5"]);
    assert_eq!(labels(1.62, 1.68, 6), ["1.62", "1.63", "1.64", "1.65", "1.66", "1.67", "1.68"]);
    assert_eq!(labels(0.0, 2.1e-3, 4), ["0", "0.001", "0.002"]);
    assert_eq!(labels(0.0, 3.2e-5, 3), ["0", "2e-5"]);
    assert_eq!(labels(0.0, 3e-4, 4), ["0", "1e-4", "2e-4", "3e-4"]);
}

#[test]
fn an_axis_picks_its_unit_and_maps_its_ends() {
    let axis = Axis::new(0.0, 12e6, axis::TOKENS, 6);
    assert_eq!(axis.unit_name(), "million tokens");
    assert_eq!((axis.map(&0.0, (100, 900)), axis.map(&12e6, (100, 900))), (100, 900));
    assert_eq!((axis.map(&3e6, (100, 900)), axis.map(&3e6, (900, 100))), (300, 700));
    assert_eq!(axis.format_ext(&6e6), "6");
    for (max, name) in [(1.5, "seconds"), (119.0, "seconds"), (121.0, "minutes"), (7201.0, "hours")] {
        assert_eq!(axis::unit(axis::SECONDS, max).name, name);
    }
}

#[test]
fn numbers_are_written_for_readers() {
    assert_eq!([0, 999, 1000, 1_234_567].map(number::grouped), ["0", "999", "1,000", "1,234,567"]);
    assert_eq!(
        [9_999, 12_345, 11_993_088, 360_000_000_000].map(number::compact),
        ["9,999", "12.3 k", "11.99 M", "360.00 B"]
    );
    assert_eq!([0.0123, 1.234, 12.34, 258.1].map(number::short), ["0.0123", "1.23", "12.3", "258"]);
    assert_eq!([3.21, 59.96, 247.4, 7500.0].map(number::duration), ["3.2 s", "1 min 00 s", "4 min 07 s", "2 h 05 min"]);
    assert_eq!(number::flops(3e13), "3.00e13");
    let spread = MeanSpread::of([1.0, 2.0, 3.0]).unwrap();
    assert_eq!(spread, MeanSpread { mean: 2.0, spread: Some(1.0) });
    assert!((spread.half_width_95(3).unwrap() - 4.303 / 3f64.sqrt()).abs() < 1e-12);
    assert_eq!(MeanSpread::of([5.0]).unwrap().half_width_95(1), None);
    assert_eq!(MeanSpread::of([]), None);
    assert!((evaluation(std::f64::consts::LN_2).bits_per_byte - 1.0).abs() < 1e-15);
    assert!((evaluation(0.5f64.ln()).perplexity() - 0.5).abs() < 1e-15);
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn pages_are_written_whole_or_not_at_all() {
    let folder = Folder(std::env::temp_dir().join(format!("patchgpt-report-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    let path = folder.0.join("report.html");
    std::fs::write(&path, "old").unwrap();
    run().write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), run().html().unwrap());
    comparison(1).write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), comparison(1).html().unwrap());
    let missing = folder.0.join("none").join("report.html");
    let message = run().write(&missing).unwrap_err().to_string();
    assert!(message.contains("report.html"), "{message}");
    // A folder cannot be replaced by a file: the error leaves it, and nothing beside it.
    let occupied = folder.0.join("occupied");
    std::fs::create_dir(&occupied).unwrap();
    assert!(run().write(&occupied).is_err());
    assert!(occupied.is_dir());
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 2);
}
