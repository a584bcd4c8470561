//! `compare`: two arms, several seeds, equal cost; the table, the files, and going on after a stop.

use serde_json::Value;

use crate::run::{Place, SMALL};

fn results(place: &Place, out: &str) -> Value {
    serde_json::from_slice(&place.read(&format!("{out}/results.json"))).unwrap()
}

fn numbers(arm: &Value, key: &str) -> Vec<f64> {
    arm["runs"].as_array().unwrap().iter().map(|run| run[key].as_f64().unwrap()).collect()
}

#[test]
fn both_arms_cost_the_same() {
    let place = Place::new();
    for budget in ["compute", "tokens"] {
        let flags = ["compare", "--out", budget, "--budget", budget, "--seeds=2"];
        let finished = place.run(&[&flags[..], SMALL].concat()).ok();
        for row in ["cost per token, by formula", "model FLOPs", "seconds", "epochs", "perplexity", "bits per byte"] {
            assert!(finished.out.contains(row), "{row} is not in {}", finished.out);
        }
        let results = results(&place, budget);
        let (token, patch) = (&results["arms"][0], &results["arms"][1]);
        for (key, equal) in [("model_flops", budget == "compute"), ("tokens", budget == "tokens")] {
            for (ours, theirs) in numbers(token, key).iter().zip(numbers(patch, key)) {
                assert_eq!((ours / theirs - 1.0).abs() < 0.1, equal, "{key}: {ours} and {theirs}");
            }
        }
        assert_eq!(token["cost_by_formula"], 1.0);
        assert!((patch["cost_by_formula"].as_f64().unwrap() - 0.5).abs() < 0.01);
        let losses = numbers(token, "val_loss");
        assert!(losses.len() == 2 && losses[0] != losses[1], "two seeds, two results: {losses:?}");
        assert!(place.path(budget).join("report.html").exists());
        assert!(place.path(budget).join("patch-then-token/seed-2/report.html").exists());
        let learning_rates =
            |arm: &str| place.metrics(&format!("{budget}/{arm}/seed-1")).iter().map(|r| r.lr).fold(0.0, f64::max);
        assert_eq!(learning_rates("token-only"), learning_rates("patch-then-token"));
    }
}

#[test]
fn a_comparison_goes_on_where_it_stopped() {
    let place = Place::new();
    place.run(&[&["compare", "--out=whole"], SMALL].concat()).ok();
    place.run(&[&["compare", "--out=parts"], SMALL].concat()).ok();
    for file in ["results.json", "report.html"] {
        std::fs::remove_file(place.path("parts").join(file)).unwrap();
    }
    std::fs::remove_dir_all(place.path("parts/patch-then-token")).unwrap();
    let finished = place.read("parts/token-only/seed-1/metrics.jsonl");
    place.run(&["compare", "--resume", "--out=parts"]).ok();
    assert_eq!(finished, place.read("parts/token-only/seed-1/metrics.jsonl"), "a finished run is not made again");
    for arm in 0..2 {
        let losses = |out| numbers(&results(&place, out)["arms"][arm], "val_loss");
        assert_eq!(losses("whole"), losses("parts"));
    }
    place.run(&["compare", "--resume", "--out=parts", "--budget=tokens"]).fails(2, &["train.flops", "train.tokens"]);
    place.run(&["compare", "--resume", "--out=parts", "--lr=1"]).fails(2, &["train.lr is", "0.002"]);
    place.run(&["train", "--resume", "--out=parts"]).fails(2, &["holds a comparison"]);
}

#[test]
fn there_must_be_something_to_compare() {
    let place = Place::new();
    let flags = [&["compare", "--out=none"], SMALL].concat();
    let tokens: Vec<&str> = flags.iter().copied().filter(|flag| !flag.starts_with("--patch-fraction")).collect();
    place.run(&[&tokens[..], &["--patch-fraction=0"]].concat()).fails(2, &["nothing to compare", "--patch-fraction"]);
    place.run(&[&flags[..], &["--seeds=0"]].concat()).fails(2, &["--seeds 0"]);
    assert!(!place.path("none").exists());
}
