//! `inspect` against what transformers computed: logits, loss and every gradient of small models, from folders as transformers 4 and 5
//! write them, in one file and in shards, in every floating-point type.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use serde_json::{Value, json};

use crate::run::Place;

/// A path among the transcripts of transformers.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/fixtures").join(name)
}

/// Shape and values of every tensor of a file, which are of one type.
fn read(path: &Path, expected: Dtype) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |t: &TensorView| -> Vec<f64> {
        match t.dtype() {
            Dtype::F32 => t.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
            Dtype::F64 => t.data().as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            Dtype::I32 => t.data().as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect(),
            other => panic!("{other:?}"),
        }
    };
    let tensor = |(name, t): (&str, TensorView)| {
        // transformers computes the loss in f32 whatever the model's type.
        let exempt = name.ends_with("ids") || name.ends_with("loss");
        assert!(t.dtype() == expected || exempt, "{name} is {:?}", t.dtype());
        (name.to_string(), (t.shape().to_vec(), values(&t)))
    };
    file.iter().map(tensor).collect()
}

fn tokens(ids: &[f64]) -> String {
    ids.iter().map(|id| id.to_string()).collect::<Vec<_>>().join(",")
}

/// Runs `inspect` and reads what it wrote.
fn inspect(place: &Place, model: &str, ids: &[f64], more: &[&str]) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
    let ids = tokens(ids);
    let arguments = [&["inspect", "--model", model, "--tokens", &ids, "--out", "out.safetensors"], more].concat();
    let said = place.run(&arguments).ok().out;
    let written = read(&place.path("out.safetensors"), Dtype::F32);
    let loss: f64 = said.split_once(": loss ").and_then(|(_, rest)| rest.split_once(' ')).unwrap().0.parse().unwrap();
    assert!((loss - written["loss"].1[0]).abs() < 2e-6 && said.contains("out.safetensors"), "{said}");
    written
}

/// The largest difference of two tensors relative to the largest value of the second.
fn distance(found: &[f64], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let difference = |(a, b): (&f64, &f64)| (a - b).abs() / largest;
    found.iter().zip(expected).map(difference).fold(0.0, |m, d| if d.is_nan() { f64::NAN } else { m.max(d) })
}

#[test]
fn logits_loss_and_gradients_are_those_of_transformers() {
    let place = Place::new();
    for model in ["llama", "llama_tied", "gpt2"] {
        let expected = read(&fixture(&format!("inspect_{model}.safetensors")), Dtype::F64);
        let folder = fixture(model);
        for (stage, patch) in [("token", "1"), ("patch", "4")] {
            let ids = &expected[&format!("{stage}.ids")].1;
            let prefix = format!("{stage}.");
            let wanted: BTreeSet<&str> =
                expected.keys().filter_map(|k| k.strip_prefix(&prefix)).filter(|k| *k != "ids").collect();
            for (dtype, allowed) in [("f32", 2e-5), ("f64", 2e-7)] {
                let flags = ["--patch-size", patch, "--dtype", dtype, "--threads", "2"];
                let found = inspect(&place, folder.to_str().unwrap(), ids, &flags);
                assert_eq!(found.keys().map(String::as_str).collect::<BTreeSet<_>>(), wanted, "{model} {stage}");
                for name in &wanted {
                    let ((shape, values), (expected_shape, expected)) =
                        (&found[*name], &expected[&format!("{prefix}{name}")]);
                    assert_eq!(shape, expected_shape, "{model} {stage} {name}");
                    let error = distance(values, expected);
                    assert!(error <= allowed, "{model} {stage} in {dtype}: {name} is off by {error:e}");
                }
            }
        }
    }
}

/// A copy of a folder of the fixtures, its weights as `convert` makes them.
fn copy(
    place: &Place,
    model: &str,
    to: &str,
    dtype: Dtype,
    convert: fn(f32) -> Vec<u8>,
    shards: usize,
) -> HashMap<String, Value> {
    let bytes = std::fs::read(fixture(model).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, t) in file.iter() {
        let values = t.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
        tensors.push((name.to_string(), t.shape().to_vec(), values.flat_map(convert).collect()));
    }
    std::fs::create_dir(place.path(to)).unwrap();
    let mut map = HashMap::new();
    for (i, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let name = match shards {
            1 => "model.safetensors".to_string(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", i + 1),
        };
        let views =
            part.iter().map(|(n, shape, data)| (n.as_str(), TensorView::new(dtype, shape.clone(), data).unwrap()));
        std::fs::write(place.path(to).join(&name), serialize(views, None).unwrap()).unwrap();
        map.extend(part.iter().map(|(n, ..)| (n.clone(), json!(name))));
    }
    if shards > 1 {
        let index = json!({ "metadata": {}, "weight_map": map }).to_string();
        std::fs::write(place.path(to).join("model.safetensors.index.json"), index).unwrap();
    }
    let config: HashMap<String, Value> =
        serde_json::from_slice(&std::fs::read(fixture(model).join("config.json")).unwrap()).unwrap();
    write_config(place, to, &config);
    config
}

fn write_config(place: &Place, folder: &str, config: &HashMap<String, Value>) {
    std::fs::write(place.path(folder).join("config.json"), serde_json::to_string(config).unwrap()).unwrap();
}

#[test]
fn every_way_in_which_a_model_is_published_is_read() {
    let place = Place::new();
    let plain: fn(f32) -> Vec<u8> = |v| v.to_le_bytes().to_vec();
    for model in ["llama", "gpt2"] {
        let ids: Vec<f64> = (0..12).map(|i| ((i * i * 7 + 3) % 97) as f64).collect();
        let original = inspect(&place, fixture(model).to_str().unwrap(), &ids, &[]);
        copy(&place, model, &format!("{model}-shards"), Dtype::F32, plain, 3);
        assert_eq!(inspect(&place, &format!("{model}-shards"), &ids, &[]), original);
        // Half precision is read as what it holds: the same as weights rounded before.
        type Convert = (&'static str, Dtype, fn(f32) -> Vec<u8>, fn(f32) -> Vec<u8>);
        let types: [Convert; 2] = [
            (
                "bf16",
                Dtype::BF16,
                |v| bf16::from_f32(v).to_le_bytes().into(),
                |v| bf16::from_f32(v).to_f32().to_le_bytes().into(),
            ),
            (
                "f16",
                Dtype::F16,
                |v| f16::from_f32(v).to_le_bytes().into(),
                |v| f16::from_f32(v).to_f32().to_le_bytes().into(),
            ),
        ];
        for (name, dtype, half, rounded) in types {
            copy(&place, model, &format!("{model}-{name}"), dtype, half, 2);
            copy(&place, model, &format!("{model}-{name}-rounded"), Dtype::F32, rounded, 1);
            let found = inspect(&place, &format!("{model}-{name}"), &ids, &[]);
            assert_eq!(found, inspect(&place, &format!("{model}-{name}-rounded"), &ids, &[]));
            let error = distance(&found["logits"].1, &original["logits"].1);
            assert!(error > 0.0 && error < 0.1, "{model} {name}: {error}");
        }
    }
    // The base of the rotation where version 4 writes it, and where version 5 does.
    let ids: Vec<f64> = (0..12).map(f64::from).collect();
    let mut config = copy(&place, "llama", "v4", Dtype::F32, plain, 1);
    config.remove("rope_parameters");
    config.insert("rope_theta".into(), json!(5000.0));
    config.insert("rope_scaling".into(), Value::Null);
    config.insert("torch_dtype".into(), json!("float32"));
    write_config(&place, "v4", &config);
    let four = inspect(&place, "v4", &ids, &[]);
    config.remove("rope_theta");
    config.insert("rope_parameters".into(), json!({ "rope_type": "default", "rope_theta": 5000.0 }));
    write_config(&place, "v4", &config);
    assert_eq!(inspect(&place, "v4", &ids, &[]), four);
    let other = inspect(&place, fixture("llama").to_str().unwrap(), &ids, &[]);
    assert!(distance(&four["logits"].1, &other["logits"].1) > 1e-4, "the base of the rotation was not read");
}

#[test]
fn what_a_config_asks_for_and_the_model_cannot_do_is_an_error() {
    let place = Place::new();
    let config = copy(&place, "llama", "model", Dtype::F32, |v| v.to_le_bytes().to_vec(), 1);
    let arguments = ["inspect", "--model=model", "--tokens=1,2,3", "--out=out.safetensors"];
    place.run(&arguments).ok();
    std::fs::remove_file(place.path("out.safetensors")).unwrap();
    for (key, value) in [
        ("rope_scaling", json!({ "rope_type": "linear", "factor": 2.0 })),
        ("rope_parameters", json!({ "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0 })),
        ("sliding_window", json!(16)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("hidden_act", json!("relu")),
        ("attention_bias", json!(true)),
        ("model_type", json!("mistral")),
        ("head_dim", json!(4)),
    ] {
        let mut changed = config.clone();
        changed.insert(key.into(), value);
        write_config(&place, "model", &changed);
        place.run(&arguments).fails(1, &[key, "config.json"]);
        assert!(!place.path("out.safetensors").exists(), "{key}");
    }
}

#[test]
fn tokens_that_make_no_sequence_are_usage() {
    let place = Place::new();
    let model = fixture("gpt2");
    let run = |more: &[&str]| {
        let base = ["inspect", "--model", model.to_str().unwrap(), "--out", "out.safetensors"];
        place.run(&[&base, more].concat())
    };
    run(&["--tokens=1,2,x"]).fails(2, &["--tokens", "`x`"]);
    run(&["--tokens="]).fails(2, &["--tokens", "no token"]);
    run(&["--tokens=1,2,3", "--patch-size=2"]).fails(2, &["3 tokens", "patches of 2"]);
    run(&["--tokens=1,2,3", "--patch-size=0"]).fails(2, &["patches of 0"]);
    run(&["--tokens=1,2,3", "--patch-size=3"]).fails(2, &["1 positions", "at least 2"]);
    run(&["--tokens=1,2,97"]).fails(2, &["token 97", "0 to 96"]);
    run(&["--tokens=1,-2,3"]).fails(2, &["token -2"]);
    let long = vec!["1"; 33].join(",");
    run(&["--tokens", &long]).fails(2, &["33 positions", "32 at most"]);
    run(&["--tokens=1,2", "--dtype=f16"]).fails(2, &["f16"]);
    run(&["--tokens=1,2", "--out=."]).fails(2, &["is a folder"]);
    place.run(&["inspect", "--model=none", "--tokens=1,2", "--out=x"]).fails(2, &["`none`"]);
    run(&["--tokens=1,2", "--out=none/x.safetensors"]).fails(1, &["none/x.safetensors"]);
    // As many positions as the model has, and two.
    run(&["--tokens", &long[2..]]).ok();
    run(&["--tokens= 96, 0 "]).ok();
}

#[test]
fn a_run_of_the_program_is_a_model_too() {
    let place = Place::new();
    place.train("run", &[]).ok();
    let found = inspect(&place, "run", &[10.0, 32.0, 101.0, 116.0], &["--patch-size=2"]);
    assert_eq!(found["logits"].0, [2, 256]);
    assert!(found["loss"].0.is_empty() && found["loss"].1[0] > 0.0);
}
