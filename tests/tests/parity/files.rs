//! What is written is what transformers writes: the same tensors under the same names, to the byte.

use std::collections::BTreeMap;

use patchgpt_models::hub;
use patchgpt_tensor::DType;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::fixture::{model, path};

/// Type, shape and bytes of every tensor of a file.
fn contents(bytes: &[u8]) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensor = |(name, t): (&str, safetensors::tensor::TensorView)| {
        (name.to_string(), (format!("{:?}", t.dtype()), t.shape().to_vec(), t.data().to_vec()))
    };
    file.iter().map(tensor).collect()
}

#[test]
fn an_exported_model_is_the_published_one_to_the_byte() {
    for name in ["llama", "llama_tied", "gpt2"] {
        for dtype in [DType::F32, DType::F64] {
            let folder = tempfile::tempdir().unwrap();
            hub::save(&model(name, dtype), folder.path()).unwrap();
            let published = std::fs::read(path(name).join("model.safetensors")).unwrap();
            let exported = std::fs::read(folder.path().join("model.safetensors")).unwrap();
            assert_eq!(contents(&exported), contents(&published), "{name} {dtype}");
            let (_, header) = SafeTensors::read_metadata(&exported).unwrap();
            let format = header.metadata().as_ref().and_then(|m| m.get("format")).map(String::as_str);
            assert_eq!(format, Some("pt"), "transformers refuses files without it");

            let json = |folder: &std::path::Path| -> Value {
                serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
            };
            let (ours, theirs) = (json(folder.path()), json(&path(name)));
            for (key, value) in theirs.as_object().unwrap() {
                // Defaults of transformers that decide nothing about the model need not be written out.
                let Some(written) = ours.get(key).filter(|_| key != "use_cache") else { continue };
                let same = written == value || (key == "n_inner" && *written == 4 * ours["n_embd"].as_u64().unwrap());
                assert!(same, "{name}: {key} is {written} instead of {value}");
            }
        }
    }
}
