//! Models written to and read from folders in the Hugging Face layout: to the bit, in every type, in one file or several, with every
//! kind of damage.

use std::collections::HashMap;
use std::path::Path;

use half::{bf16, f16};
use patchgpt_models::config::{Config, Dialect, ModelConfig};
use patchgpt_models::{Gpt, hub};
use patchgpt_tensor::{DType, Device};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use tempfile::TempDir;

/// Name, type, shape and bytes.
type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

fn config(dialect: Dialect) -> ModelConfig {
    ModelConfig {
        preset: None,
        dialect,
        layers: 2,
        hidden: 12,
        ffn: 20,
        heads: 3,
        kv_heads: if dialect == Dialect::Llama { 1 } else { 3 },
        vocab_size: 70,
        max_positions: 16,
        tied_head: dialect == Dialect::Gpt2,
        norm_eps: 2e-5,
        init_std: 0.3,
        ..Config::preset("tiny").unwrap().model
    }
}

fn device() -> Device {
    Device::cpu_with_threads(1).unwrap()
}

fn model(dialect: Dialect, dtype: DType) -> Gpt {
    Gpt::new(&config(dialect), dtype, &device(), 8).unwrap()
}

fn saved(dialect: Dialect) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    hub::save(&model(dialect, DType::F32), folder.path()).unwrap();
    folder
}

fn weights(folder: &Path) -> Vec<Stored> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |(name, t): (&str, TensorView)| (name.into(), t.dtype(), t.shape().to_vec(), t.data().to_vec());
    let mut tensors: Vec<Stored> = file.iter().map(stored).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

fn write(path: &Path, tensors: &[Stored]) {
    let view = |(name, dtype, shape, bytes): &'_ Stored| (name.clone(), *dtype, shape.clone(), bytes.clone());
    let owned: Vec<Stored> = tensors.iter().map(view).collect();
    let views = owned
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// Loads what `change` makes of the weights.
fn changed(folder: &Path, change: impl FnOnce(&mut Vec<Stored>)) -> patchgpt_models::Result<Gpt> {
    let mut tensors = weights(folder);
    change(&mut tensors);
    write(&folder.join("model.safetensors"), &tensors);
    hub::load(folder, DType::F32, &device())
}

fn values(gpt: &Gpt) -> Vec<f64> {
    gpt.parameters().values().to_f64_vec().unwrap()
}

const DIALECTS: [Dialect; 2] = [Dialect::Llama, Dialect::Gpt2];

#[test]
fn a_model_comes_back_to_the_bit() {
    for dialect in DIALECTS {
        for tied_head in [false, true] {
            let config = ModelConfig { tied_head, ..config(dialect) };
            let gpt = Gpt::new(&config, DType::F32, &device(), 8).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let place = folder.path().join("new/model");
            hub::save(&gpt, &place).unwrap();
            let back = hub::load(&place, DType::F32, &device()).unwrap();
            assert_eq!(back.config(), &config);
            assert_eq!(values(&back), values(&gpt));
            // Over an existing model, too, and nothing is left beside it.
            hub::save(&back, &place).unwrap();
            let mut names: Vec<_> = std::fs::read_dir(&place).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["config.json", "model.safetensors", "tokenizer_config.json"]);
        }
    }
}

#[test]
fn a_model_in_f64_is_written_as_f32() {
    let gpt = model(Dialect::Llama, DType::F64);
    let folder = tempfile::tempdir().unwrap();
    hub::save(&gpt, folder.path()).unwrap();
    assert!(weights(folder.path()).iter().all(|(_, dtype, _, _)| *dtype == Dtype::F32));
    let back = hub::load(folder.path(), DType::F64, &device()).unwrap();
    let rounded: Vec<f64> = values(&gpt).iter().map(|&v| f64::from(v as f32)).collect();
    assert_eq!(values(&back), rounded);
}

#[test]
fn every_floating_point_type_is_read() {
    for dialect in DIALECTS {
        let expected = values(&model(dialect, DType::F32));
        type Convert = (Dtype, fn(f32) -> (Vec<u8>, f32));
        let conversions: [Convert; 3] = [
            (Dtype::F64, |v| (f64::from(v).to_le_bytes().to_vec(), v)),
            (Dtype::F16, |v| (f16::from_f32(v).to_le_bytes().to_vec(), f16::from_f32(v).to_f32())),
            (Dtype::BF16, |v| (bf16::from_f32(v).to_le_bytes().to_vec(), bf16::from_f32(v).to_f32())),
        ];
        for (dtype, convert) in conversions {
            let folder = saved(dialect);
            let back = changed(folder.path(), |tensors| {
                for (_, stored, _, bytes) in tensors {
                    *stored = dtype;
                    let values = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
                    *bytes = values.flat_map(|v| convert(v).0).collect();
                }
            });
            let expected: Vec<f64> = expected.iter().map(|&v| convert(v as f32).1.into()).collect();
            assert_eq!(values(&back.unwrap()), expected, "{dialect} {dtype:?}");
        }
    }
}

#[test]
fn shards_are_read() {
    let folder = saved(Dialect::Llama);
    let tensors = weights(folder.path());
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut map = HashMap::new();
    for (file, part) in [("a.safetensors", first), ("b.safetensors", second)] {
        write(&folder.path().join(file), part);
        map.extend(part.iter().map(|(name, ..)| (name.clone(), file)));
    }
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    let load = || hub::load(folder.path(), DType::F32, &device());
    assert_eq!(values(&load().unwrap()), values(&model(Dialect::Llama, DType::F32)));

    std::fs::remove_file(folder.path().join("b.safetensors")).unwrap();
    assert!(load().err().unwrap().to_string().contains("b.safetensors"));
    for damaged in ["{", "[]", r#"{"weight_map": {"x": 3}}"#, r#"{"weight_map": {"x": "../other"}}"#] {
        std::fs::write(&index, damaged).unwrap();
        assert!(load().err().unwrap().to_string().contains("model.safetensors.index.json"), "{damaged}");
    }
}

#[test]
fn files_of_older_versions_are_read() {
    let folder = saved(Dialect::Gpt2);
    let expected = values(&model(Dialect::Gpt2, DType::F32));
    let back = changed(folder.path(), |tensors| {
        for (name, ..) in tensors.iter_mut() {
            *name = name.trim_start_matches("transformer.").to_string();
        }
        let head = tensors.iter().find(|(name, ..)| name == "wte.weight").unwrap().clone();
        tensors.push(("lm_head.weight".into(), head.1, head.2, head.3));
        tensors.push(("h.0.attn.bias".into(), Dtype::F32, vec![1, 1, 2, 2], vec![0; 16]));
        tensors.push(("h.1.attn.masked_bias".into(), Dtype::F32, vec![], vec![0; 4]));
    });
    assert_eq!(values(&back.unwrap()), expected);
}

#[test]
fn a_head_that_should_be_tied_must_be() {
    let folder = saved(Dialect::Gpt2);
    let error = changed(folder.path(), |tensors| {
        let head = tensors.iter().find(|(name, ..)| name.ends_with("wte.weight")).unwrap().clone();
        let mut bytes = head.3;
        bytes[2] ^= 1;
        tensors.push(("lm_head.weight".into(), head.1, head.2, bytes));
    });
    assert!(error.err().unwrap().to_string().contains("tie_word_embeddings"));
}

#[test]
fn all_that_does_not_fit_is_listed() {
    let folder = saved(Dialect::Llama);
    let error = changed(folder.path(), |tensors| {
        tensors.retain(|(name, ..)| !name.ends_with("v_proj.weight"));
        for (name, dtype, shape, bytes) in tensors.iter_mut() {
            match name.as_str() {
                "model.norm.weight" => {
                    *shape = vec![6, 2];
                }
                "lm_head.weight" => (*dtype, *shape, *bytes) = (Dtype::I32, vec![70, 12], vec![0; 70 * 12 * 4]),
                "model.layers.0.mlp.up_proj.weight" => *name = "model.layers.0.mlp.upper.weight".into(),
                _ => {}
            }
        }
    });
    let message = error.err().unwrap().to_string();
    for part in [
        "3 missing: model.layers.0.mlp.up_proj.weight, model.layers.0.self_attn.v_proj.weight, model.layers.1.self_attn.v_proj.weight;",
        "1 unexpected: model.layers.0.mlp.upper.weight;",
        "2 of another shape or type: lm_head.weight of type I32",
        "model.norm.weight [6, 2] instead of [12]",
    ] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
}

#[test]
fn a_tensor_that_no_model_has_is_named_beside_a_tied_head() {
    let folder = saved(Dialect::Gpt2);
    let error = changed(folder.path(), |tensors| {
        let table = tensors.iter().find(|(name, ..)| name.ends_with("wte.weight")).unwrap().clone();
        tensors.push(("transformer.wte.copy".into(), table.1, table.2, table.3));
    });
    let message = error.err().unwrap().to_string();
    assert!(message.contains("1 unexpected: transformer.wte.copy"), "{message}");
}

/// Before a model of that size is made: its memory may not be there.
#[test]
fn files_that_are_too_small_for_the_model_are_refused_by_their_size() {
    for dialect in DIALECTS {
        let folder = saved(dialect);
        let key = if dialect == Dialect::Llama { "num_hidden_layers" } else { "n_layer" };
        let path = folder.path().join("config.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        // Four bytes a parameter are there, two are enough to try.
        let layers = json[key].as_u64().unwrap();
        for (times, too_small) in [(1, false), (8, true), (1 << 20, true)] {
            json[key] = (times * layers).into();
            std::fs::write(&path, json.to_string()).unwrap();
            match hub::load(folder.path(), DType::F32, &device()) {
                Err(error) => assert!(too_small && error.to_string().contains("cannot hold the"), "{times}: {error}"),
                Ok(_) => assert!(!too_small, "{times}"),
            }
        }
    }
}

#[test]
fn one_file_goes_before_an_index() {
    let folder = saved(Dialect::Llama);
    std::fs::write(folder.path().join("model.safetensors.index.json"), "no JSON").unwrap();
    assert!(hub::load(folder.path(), DType::F32, &device()).is_ok());
}

#[test]
fn damaged_files_are_errors() {
    for dialect in DIALECTS {
        let folder = saved(dialect);
        let path = folder.path().join("model.safetensors");
        let load = || hub::load(folder.path(), DType::F32, &device());
        let whole = std::fs::read(&path).unwrap();
        for len in [0, 1, 7, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            let message = load().err().unwrap().to_string();
            assert!(message.contains("model.safetensors") && message.contains("truncated"), "{len}: {message}");
        }
        for foreign in [&b"PK\x03\x04 a zip archive, as PyTorch writes"[..], &[0xff; 64]] {
            std::fs::write(&path, foreign).unwrap();
            assert!(load().is_err());
        }
        std::fs::remove_file(&path).unwrap();
        assert!(load().err().unwrap().to_string().contains("model.safetensors"));
        for json in ["", "{", "[1]", "{}", "\u{0}"] {
            std::fs::write(folder.path().join("config.json"), json).unwrap();
            assert!(load().err().unwrap().to_string().contains("config.json"));
        }
        assert!(hub::load(&folder.path().join("none"), DType::F32, &device()).is_err());
    }
}

#[test]
fn what_cannot_be_written_leaves_what_was_there() {
    let folder = saved(Dialect::Llama);
    let before = weights(folder.path());
    // A folder in the way of the new file.
    std::fs::create_dir(folder.path().join("model.safetensors.partial")).unwrap();
    let error = hub::save(&model(Dialect::Gpt2, DType::F32), folder.path()).err().unwrap();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    assert!(weights(folder.path()) == before, "the weights were changed");
    assert_eq!(hub::load_config(folder.path()).unwrap(), config(Dialect::Llama));
}
