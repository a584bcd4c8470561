//! A run from start to end: what it writes, what it prints, that it learns, and that it can be repeated.

use patchgpt_models::train::stages::StageName;
use serde_json::Value;

use crate::run::{Place, timeless};

#[test]
fn a_run_writes_everything_it_promises() {
    let place = Place::new();
    let finished = place.train("run", &[]).ok();
    for part in ["validation: loss", "perplexity", "bits per byte", "sample of seed 1", "r = 0.3333 of the steps"] {
        assert!(finished.out.contains(part), "`{part}` is not in {}", finished.out);
    }
    for file in ["config.toml", "metrics.jsonl", "report.html", "model", "checkpoints"] {
        assert!(place.path("run").join(file).exists() && finished.out.contains(&format!("run/{file}")), "{file}");
    }
    let records = place.metrics("run");
    assert_eq!(records.iter().map(|record| record.step).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    for record in &records {
        let patch = record.step <= 4;
        assert_eq!(record.stage, if patch { StageName::Patch } else { StageName::Token });
        assert_eq!(record.loss_above_floor.is_some(), patch);
        assert!(record.loss_above_floor.is_none_or(|above| above > 0.0 && above < record.loss));
        assert_eq!(record.val_loss.is_some(), [4, 5, 10, 12].contains(&record.step), "step {}", record.step);
        let (patches, tokens) = (record.step.min(4), record.step.saturating_sub(4));
        assert_eq!(record.tokens, 4 * 16 * (4 * patches + tokens));
        assert_eq!(record.positions, 4 * 16 * record.step);
    }
    let line = String::from_utf8(place.read("run/metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    let keys: Vec<&str> = first.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = [
        "step",
        "stage",
        "tokens",
        "positions",
        "loss",
        "loss_above_floor",
        "val_loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "model_flops",
        "seconds",
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    let checkpoints = std::fs::read_dir(place.path("run/checkpoints")).unwrap().count();
    assert_eq!(checkpoints, 2);
    let page = String::from_utf8(place.read("run/report.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("patches of 4"));
}

#[test]
fn the_loss_falls_in_both_stages() {
    let place = Place::new();
    place.train("run", &["--steps=180", "--lr=1e-2", "--set=train.evaluate_every=180"]).ok();
    let records = place.metrics("run");
    for stage in [StageName::Patch, StageName::Token] {
        let losses: Vec<f64> = records.iter().filter(|r| r.stage == stage).map(|r| r.loss).collect();
        assert!(losses.len() >= 60);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&losses[..5]), mean(&losses[losses.len() - 5..]));
        assert!(last < first - 0.3, "{stage}: {first} at first, {last} at last");
    }
    // The validation loss compares token level with token level: it falls over the whole run, far below log 256.
    let validation: Vec<f64> = records.iter().filter_map(|record| record.val_loss).collect();
    assert!(*validation.last().unwrap() < 3.0, "{validation:?}");
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let place = Place::new();
    let shape = ["--set=model.hidden=64", "--set=model.ffn=160", "--seq-len=32", "--batch-size=8"];
    for threads in ["1", "2", "3"] {
        let flag = format!("--threads={threads}");
        place.train(&format!("run-{threads}"), &[&shape[..], &[&flag]].concat()).ok();
    }
    for threads in ["2", "3"] {
        let other = format!("run-{threads}");
        assert_eq!(timeless(&place.metrics("run-1")), timeless(&place.metrics(&other)));
        assert_eq!(
            place.read("run-1/model/model.safetensors"),
            place.read(&format!("{other}/model/model.safetensors"))
        );
    }
}

#[test]
fn the_recorded_configuration_repeats_the_run() {
    let place = Place::new();
    place.train("first", &["--seed=7", "--tokenizer=bpe:300"]).ok();
    place.run(&["train", "--config", "first/config.toml", "--out", "second"]).ok();
    assert_eq!(place.read("first/config.toml"), place.read("second/config.toml"));
    assert_eq!(timeless(&place.metrics("first")), timeless(&place.metrics("second")));
    assert_eq!(place.read("first/model/model.safetensors"), place.read("second/model/model.safetensors"));
    assert_eq!(place.read("first/model/tokenizer.json"), place.read("second/model/tokenizer.json"));
    place.train("other", &["--seed=8", "--tokenizer=bpe:300"]).ok();
    assert_ne!(place.read("first/model/model.safetensors"), place.read("other/model/model.safetensors"));
}

#[test]
fn passes_and_recomputation_change_the_memory_not_the_training() {
    let place = Place::new();
    place.train("whole", &["--dtype=f64"]).ok();
    for level in ["cheap", "blocks"] {
        place.train(level, &["--dtype=f64", &format!("--set=train.recompute={level}")]).ok();
        assert_eq!(timeless(&place.metrics("whole")), timeless(&place.metrics(level)), "{level}");
    }
    // Three sequences and one: their sum is the same but for the order of additions.
    place.train("passes", &["--dtype=f64", "--set=train.micro_batch=3"]).ok();
    for (whole, passes) in place.metrics("whole").iter().zip(&place.metrics("passes")) {
        assert!((whole.loss - passes.loss).abs() < 1e-9, "{whole:?} {passes:?}");
        assert!((whole.grad_norm - passes.grad_norm).abs() < 1e-9, "{whole:?} {passes:?}");
    }
}

#[test]
fn without_out_runs_are_numbered() {
    let place = Place::new();
    for number in 1..=2 {
        let finished = place.run(&[&["train"], crate::run::SMALL].concat()).ok();
        assert!(finished.out.contains(&format!("runs/tiny-{number}/model")), "{}", finished.out);
    }
    let evaluated = place.run(&["eval", "--threads=1"]).ok();
    assert!(evaluated.err.contains("runs/tiny-2") && evaluated.out.contains("bits per byte"), "{}", evaluated.err);
}

#[test]
fn weights_of_another_run_are_where_the_next_one_starts() {
    let place = Place::new();
    for dialect in ["llama", "gpt2"] {
        let (first, second) = (format!("first-{dialect}"), format!("second-{dialect}"));
        let flag = format!("--set=model.dialect={dialect}");
        place.train(&first, &["--tokenizer=bpe:280", "--steps=30", "--lr=1e-2", &flag]).ok();
        let init = ["--data=text.txt", "--seq-len=16", "--batch-size=4", "--steps=3", "--threads=1"];
        let windows = "--set=train.evaluation_windows=4";
        place.run(&[&["train", "--init", &first, "--out", &second, windows], &init[..]].concat()).ok();
        let json = |run: &str, more: &[&str]| -> Value {
            let evaluated = place.run(&[&["eval", run, "--json", "--threads=1"], more].concat()).ok();
            serde_json::from_str(&evaluated.out).unwrap()
        };
        let config = String::from_utf8(place.read(&format!("{second}/config.toml"))).unwrap();
        assert!(config.contains("vocab_size = 280") && config.contains("layers = 1"), "{config}");
        assert!(json(&second, &[])["loss"].as_f64() < Some(5.0));
        // What the second run measured before its first step is what the first one ended with.
        let checkpoint = std::fs::read(place.path(&second).join("checkpoints/step-0000000003.safetensors")).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&checkpoint).unwrap();
        let state: Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["state"]).unwrap();
        let ended = place.metrics(&first).last().unwrap().val_loss.unwrap();
        assert_eq!(state["initial"]["loss"].as_f64(), Some(ended));
    }
    let refused = place.train("third", &["--init=first-llama", "--set=model.layers=2", "--tokenizer=bpe:280"]);
    refused.fails(2, &["model.layers is 2 here and 1 there"]);
}
