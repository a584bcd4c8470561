//! Measuring: what is printed and written, on a model that takes no time. Timings are checked for sense, never for size.

use serde_json::Value;

use crate::run::{Finished, Place};

const SMALL: &[&str] = &[
    "bench",
    "--preset=tiny",
    "--set=model.layers=1",
    "--set=model.hidden=16",
    "--set=model.ffn=24",
    "--set=model.heads=2",
    "--seq-len=16",
    "--batch-size=4",
    "--steps=2",
    "--threads=1",
];

fn bench(place: &Place, more: &[&str]) -> Finished {
    place.run(&[SMALL, more].concat())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number expected, got {value}"))
}

#[test]
fn one_object_holds_everything() {
    let place = Place::new();
    let mut model_flops = Vec::new();
    let seconds_of = |measured: &Value, op: &str| {
        let ops = measured["ops"].as_array().unwrap();
        ops.iter().find(|found| found["name"] == op).map(|found| number(&found["seconds"]))
    };
    for (regime, patch_size) in [("token", 1), ("patch", 4)] {
        let finished = bench(&place, &["--json", "--regime", regime, "--patch-size=4"]).ok();
        assert_eq!(finished.out.lines().count(), 1);
        let measured: Value = serde_json::from_str(&finished.out).unwrap();
        assert_eq!((measured["regime"].as_str(), measured["patch_size"].as_u64()), (Some(regime), Some(patch_size)));
        assert_eq!(measured["tokens_per_step"].as_u64(), Some(4 * 16 * patch_size));
        assert_eq!((measured["steps"].as_u64(), measured["preset"].as_str()), (Some(2), Some("tiny")));
        for key in ["tokens_per_second", "step_seconds", "model_flops_per_second", "peak_flops_per_second"] {
            assert!(number(&measured[key]) > 0.0, "{key}: {}", measured[key]);
        }
        let step = number(&measured["step_seconds"]);
        assert!(number(&measured["step_seconds_min"]) <= step && step <= number(&measured["step_seconds_max"]));
        let tokens = number(&measured["tokens_per_second"]) * step;
        assert!((tokens - (64 * patch_size) as f64).abs() < 1e-6, "{tokens}");
        if cfg!(target_os = "linux") {
            // Weights, gradients and moments of f32 alone.
            assert!(number(&measured["peak_memory_bytes"]) > 16.0 * number(&measured["parameters"]));
        }
        let held = number(&measured["peak_tensor_bytes"]);
        assert!(held > 16.0 * number(&measured["parameters"]), "{held}");
        let ops = measured["ops"].as_array().unwrap();
        for op in ops {
            assert!(number(&op["flops"]) >= 0.0 && number(&op["bytes"]) > 0.0 && number(&op["calls"]) > 0.0, "{op}");
        }
        for op in [
            "matmul",
            "linear",
            "patch_embedding_backward",
            "causal_attention",
            "rms_norm_backward",
            "linear_cross_entropy",
            "adamw",
        ] {
            assert!(seconds_of(&measured, op).is_some_and(|seconds| seconds > 0.0), "{op} is not in {ops:?}");
        }
        let inside: f64 = ops.iter().map(|op| number(&op["seconds"])).sum();
        let whole = inside + number(&measured["outside_ops_seconds"]);
        assert!((whole / number(&measured["profiled_step_seconds"]) - 1.0).abs() < 1e-9);
        let flops: f64 = ops.iter().map(|op| number(&op["flops"])).sum();
        assert!(flops > number(&measured["model_flops_per_step"]), "products and what lies around them");
        model_flops.push(number(&measured["model_flops_per_step"]));
    }
    assert_eq!(model_flops[0], model_flops[1], "positions cost the same in both regimes");
}

#[test]
fn a_table_says_the_same_to_people() {
    let place = Place::new();
    let finished = bench(&place, &["--dtype=f64", "--regime=patch"]).ok();
    for part in
        ["tokens/s", "patch regime (K = 4)", "f64", "VmHWM", "linear_cross_entropy", "adamw", "outside ops", "roofline"]
    {
        assert!(finished.out.contains(part), "`{part}` is not in {}", finished.out);
    }
    assert!(finished.err.contains("warm-up") && finished.err.contains("profiler"), "{}", finished.err);
}

#[test]
fn the_trace_is_one_that_viewers_open() {
    let place = Place::new();
    let finished = bench(&place, &["--trace=steps.json", "--json"]).ok();
    assert!(finished.err.contains("steps.json"));
    let trace: Value = serde_json::from_slice(&place.read("steps.json")).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let (mut steps, mut ops) = (Vec::new(), Vec::<(f64, f64)>::new());
    for event in events {
        assert!(event["pid"].is_u64() && event["tid"].is_u64() && event["name"].is_string(), "{event}");
        match event["ph"].as_str() {
            Some("M") => assert_eq!(event["name"], "process_name"),
            Some("X") => {
                let span = (number(&event["ts"]), number(&event["ts"]) + number(&event["dur"]));
                if event["cat"] == "step" {
                    steps.push(span);
                    continue;
                }
                assert!(number(&event["args"]["flops"]) >= 0.0 && number(&event["args"]["bytes"]) > 0.0, "{event}");
                assert!(event["args"]["shapes"].as_array().is_some_and(|shapes| !shapes.is_empty()), "{event}");
                ops.push(span);
            }
            other => panic!("an event of an unknown kind {other:?}: {event}"),
        }
    }
    assert_eq!(steps.len(), 2);
    assert!(ops.len() > 40, "{}", ops.len());
    let within = |op: &(f64, f64)| steps.iter().any(|step: &(f64, f64)| step.0 <= op.0 && op.1 <= step.1);
    assert!(ops.iter().all(within), "every op lies within a step");
    assert!(ops.windows(2).all(|pair| pair[0].1 <= pair[1].0 + 1e-3), "ops follow each other");
}

#[test]
fn what_cannot_be_measured() {
    let place = Place::new();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--preset=bench-l"], &["`bench-l`", "bench-m"]),
        (&["--steps=0"], &["budget is 0", "at least one step"]),
        (&["--steps=many"], &["--steps many", "train.steps"]),
        (&["--steps=1000000000"], &["1000000000 steps", "at most"]),
        (&["--threads=0"], &["threads is 0", "at least 1"]),
        (&["--dtype=int8"], &["int8", "f32"]),
        (&["--device=abacus"], &["abacus", "cpu"]),
        (&["--patch-size=0"], &["patch size is 0"]),
        (&["--seq-len=0"], &["seq_len is 0"]),
        (&["--regime=patch", "--batch-size=6", "--set=train.patch_batch=tokens"], &["batch of 6", "4 or 8"]),
        (&["--set=train.learning=1"], &["--set train.learning=1", "there is no key"]),
        (&["--set=train.tokens=100"], &["train.steps", "train.tokens", "exclude"]),
    ];
    for (flags, parts) in cases {
        bench(&place, flags).fails(2, parts);
    }
    bench(&place, &["--trace=no/such/folder/trace.json"]).fails(1, &["cannot write", "trace.json"]);
    for arguments in [&["bench", "--regime=word"][..], &["bench", "--stps=3"], &["bench", "tiny"]] {
        let finished = place.run(arguments);
        assert_eq!(finished.code, Some(2), "{arguments:?}: {}", finished.err);
    }
}
