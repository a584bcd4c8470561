//! Planning memory: what is planned is held against what steps take, and mistakes are told.

use serde_json::Value;

use crate::run::Place;

const SMALL: &[&str] = &[
    "--set=model.layers=3",
    "--set=model.hidden=64",
    "--set=model.heads=4",
    "--set=model.ffn=160",
    "--set=data.tokenizer=bytes",
    "--set=model.vocab_size=3000",
    "--seq-len=64",
    "--batch-size=8",
];

fn object(place: &Place, command: &[&str], more: &[&str]) -> Value {
    let finished = place.run(&[command, SMALL, more].concat()).ok();
    serde_json::from_str(&finished.out).unwrap_or_else(|error| panic!("{error}: {}", finished.out))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number expected, got {value}"))
}

#[test]
fn what_is_planned_is_what_steps_take() {
    let place = Place::new();
    for preset in ["tiny", "bench-s"] {
        for more in [
            &["--regime=token"][..],
            &["--regime=patch", "--patch-size=4"],
            &["--regime=token", "--set=train.micro_batch=3"],
            &["--regime=patch", "--patch-size=2", "--set=train.recompute=blocks"],
            &["--regime=token", "--set=train.recompute=cheap"],
            &["--regime=token", "--dtype=bf16"],
        ] {
            let preset = format!("--preset={preset}");
            let more = [&[preset.as_str(), "--json", "--threads=1"], more].concat();
            let planned = object(&place, &["plan"], &more);
            let measured = object(&place, &["bench", "--steps=2"], &more);
            let (planned, measured) = (number(&planned["asked"]["peak"]), number(&measured["peak_tensor_bytes"]));
            assert!((planned / measured - 1.0).abs() < 0.01, "{more:?}: {planned} planned, {measured} taken");
        }
    }
    // The emulated device, on a model that takes it little time.
    for search in [&[][..], &["--gemm-search", "--no-graph"]] {
        let device = ["--preset=tiny", "--json", "--device=cuda:emulated"];
        let more = [&device, &["--set=model.layers=1", "--seq-len=16", "--batch-size=2"][..], search].concat();
        let (planned, measured) = (object(&place, &["plan"], &more), object(&place, &["bench", "--steps=1"], &more));
        let asked = &planned["asked"];
        assert_eq!(number(&asked["search"]) > 0.0, !search.is_empty(), "{asked}");
        let planned = number(&asked["peak"]) + number(&asked["search"]);
        let measured = number(&measured["peak_tensor_bytes"]);
        assert!((planned / measured - 1.0).abs() < 0.01, "emulated, {search:?}: {planned} planned, {measured} taken");
    }
}

#[test]
fn a_large_model_is_planned_for_a_card_that_is_not_here() {
    let place = Place::new();
    let plan = |memory: &str, more: &[&str]| {
        let memory = format!("--device-memory={memory}");
        let base = ["plan", "--preset=2.7b", "--device=cuda", "--dtype=bf16", "--json", memory.as_str()];
        let out = place.run(&[&base, more].concat()).ok().out;
        serde_json::from_str::<Value>(&out).unwrap()
    };
    let planned = plan("80GiB", &[]);
    // f32 masters and their bf16 copies, f32 gradients and two f32 moments.
    let (parameters, asked) = (number(&planned["parameters"]), &planned["asked"]);
    for (part, each) in [("weights", 6.0), ("gradients", 4.0), ("moments", 8.0)] {
        assert!((number(&asked[part]) / parameters / each - 1.0).abs() < 1e-3, "{part}: {asked}");
    }
    let proposal = &planned["proposal"];
    assert!(
        number(&proposal["micro_batch"]) >= 1.0 && number(&proposal["peak"]) < 0.95 * 80.0 * 2f64.powi(30),
        "{proposal}"
    );
    // 1/256 of the memory in rows of 32000 bf16 logits, where the pass has as many.
    let pass = ["--seq-len=2048", "--set=train.micro_batch=4"];
    for (memory, rows) in [("24G", 1024.0), ("80GiB", 5120.0)] {
        let asked = &plan(memory, &pass)["asked"];
        assert_eq!((number(&asked["logit_rows"]), number(&asked["logits"])), (rows, rows * 64000.0), "{memory}");
    }
    let small = plan("24GiB", &[]);
    assert!(small["choices"].as_array().is_some_and(Vec::is_empty) && small["proposal"].is_null(), "{small}");
    let text = place.run(&["plan", "--preset=2.7b", "--device=cuda", "--dtype=bf16", "--device-memory=24GiB"]).ok().out;
    assert!(text.contains("does not fit") && text.contains("No pass fits"), "{text}");
}

#[test]
fn mistakes_are_told() {
    let place = Place::new();
    place.run(&["plan", "--device-memory=much"]).fails(2, &["79.6GiB", "much"]);
    place.run(&["plan", "--preset=3b"]).fails(2, &["2.7b"]);
}
