//! `config.json` of transformers to and from a [`ModelConfig`]: `LlamaForCausalLM` and `GPT2LMHeadModel`.
//! The base of the rotation is written both where transformers 5 reads it (`rope_parameters`) and where version 4 does
//! (`rope_theta`). What a file asks for and this model cannot do is an error that names the key; dropout is ignored.

use serde_json::{Value, json};

use crate::config::{Dialect, ModelConfig};
use crate::{Error, Result};

/// Epsilons that transformers assumes where a file gives none.
const LLAMA_NORM_EPS: f64 = 1e-6;
const GPT2_NORM_EPS: f64 = 1e-5;
const ROPE_THETA: f64 = 10000.0;
const INIT_STD: f64 = 0.02;
/// Where the rotation is described: version 5 of transformers reads the first, and takes the second for it.
const ROPE_KEYS: [&str; 2] = ["rope_parameters", "rope_scaling"];

/// The `config.json` that makes transformers build this model.
pub(super) fn to_json(config: &ModelConfig) -> Value {
    match config.dialect {
        Dialect::Llama => json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": config.vocab_size,
            "hidden_size": config.hidden,
            "intermediate_size": config.ffn,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_dim(),
            "max_position_embeddings": config.max_positions,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta,
            "rope_parameters": { "rope_type": "default", "rope_theta": config.rope_theta },
            "attention_bias": false,
            "mlp_bias": false,
            "attention_dropout": 0.0,
            "initializer_range": config.init_std,
            "tie_word_embeddings": config.tied_head,
            "use_cache": true,
            "bos_token_id": null,
            "eos_token_id": null,
            "pad_token_id": null,
            "torch_dtype": "float32",
            "dtype": "float32",
        }),
        Dialect::Gpt2 => json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": config.vocab_size,
            "n_embd": config.hidden,
            "n_inner": config.ffn,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_positions": config.max_positions,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "scale_attn_weights": true,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "initializer_range": config.init_std,
            "tie_word_embeddings": config.tied_head,
            "use_cache": true,
            "bos_token_id": null,
            "eos_token_id": null,
            "pad_token_id": null,
            "torch_dtype": "float32",
            "dtype": "float32",
        }),
    }
}

/// The model that a `config.json` describes; `place` names the file in errors.
pub(super) fn from_json(json: &Value, place: &str) -> Result<ModelConfig> {
    let keys = Keys { json, place };
    let config = match json.get("model_type").and_then(Value::as_str) {
        Some("llama") => llama(&keys)?,
        Some("gpt2") => gpt2(&keys)?,
        other => {
            return Err(Error::Checkpoint(format!(
                "{place} has `model_type` {}; models of type \"llama\" and \"gpt2\" can be loaded",
                other.map_or("of nothing".into(), |kind| format!("\"{kind}\""))
            )));
        }
    };
    keys.only("quantization_config", &Value::Null, &[])?;
    config.validate().map_err(|error| Error::Checkpoint(format!("{place}: {error}")))?;
    Ok(config)
}

fn llama(keys: &Keys) -> Result<ModelConfig> {
    keys.only("hidden_act", &json!("silu"), &["silu", "swish"])?;
    for key in ["attention_bias", "mlp_bias", "rope_interleaved"] {
        keys.only(key, &json!(false), &[])?;
    }
    for key in ["sliding_window", "no_rope_layers"] {
        keys.only(key, &Value::Null, &[])?;
    }
    keys.whole_rotation("partial_rotary_factor", keys.get("partial_rotary_factor"))?;
    keys.full_attention()?;
    for key in ROPE_KEYS {
        keys.plain_rope(key)?;
    }
    let heads = keys.size("num_attention_heads")?;
    let config = ModelConfig {
        preset: None,
        dialect: Dialect::Llama,
        layers: keys.size("num_hidden_layers")?,
        hidden: keys.size("hidden_size")?,
        ffn: keys.size("intermediate_size")?,
        heads,
        kv_heads: keys.size_or("num_key_value_heads", heads)?,
        vocab_size: keys.size("vocab_size")?,
        max_positions: keys.size("max_position_embeddings")?,
        rope_theta: keys.rope_theta()?,
        norm_eps: keys.number_or("rms_norm_eps", LLAMA_NORM_EPS)?,
        tied_head: keys.flag_or("tie_word_embeddings", false)?,
        init_std: keys.number_or("initializer_range", INIT_STD)?,
    };
    let head_dim = config.hidden / heads.max(1);
    match keys.size_or("head_dim", head_dim)? {
        given if given == head_dim => Ok(config),
        given => Err(keys.unsupported(
            "head_dim",
            &given.to_string(),
            &format!("hidden_size / num_attention_heads = {head_dim}"),
        )),
    }
}

fn gpt2(keys: &Keys) -> Result<ModelConfig> {
    keys.only("activation_function", &json!("gelu_new"), &["gelu_new", "gelu_pytorch_tanh"])?;
    keys.only("scale_attn_weights", &json!(true), &[])?;
    for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        keys.only(key, &json!(false), &[])?;
    }
    let (hidden, heads) = (keys.size("n_embd")?, keys.size("n_head")?);
    Ok(ModelConfig {
        preset: None,
        dialect: Dialect::Gpt2,
        layers: keys.size("n_layer")?,
        hidden,
        ffn: keys.size_or("n_inner", hidden.saturating_mul(4))?,
        heads,
        kv_heads: heads,
        vocab_size: keys.size("vocab_size")?,
        max_positions: keys.size("n_positions")?,
        rope_theta: ROPE_THETA,
        norm_eps: keys.number_or("layer_norm_epsilon", GPT2_NORM_EPS)?,
        tied_head: keys.flag_or("tie_word_embeddings", true)?,
        init_std: keys.number_or("initializer_range", INIT_STD)?,
    })
}

/// The keys of a file, read with errors that name them.
struct Keys<'a> {
    json: &'a Value,
    place: &'a str,
}

impl Keys<'_> {
    /// The value of a key; `null` is no value.
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let got = self.get(key).map_or("nothing".into(), Value::to_string);
        Error::Checkpoint(format!("{}: `{key}` must be {expected}, not {got}", self.place))
    }

    fn unsupported(&self, key: &str, got: &str, supported: &str) -> Error {
        Error::Checkpoint(format!(
            "{}: `{key}` is {got}, which this model does not support; it must be {supported}",
            self.place
        ))
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.get(key)
            .and_then(Value::as_u64)
            .and_then(|size| usize::try_from(size).ok())
            .filter(|&size| size > 0 && size <= i32::MAX as usize)
            .ok_or_else(|| self.wrong(key, "a whole number from 1 to 2^31 - 1"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_none() { Ok(default) } else { self.size(key) }
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.wrong(key, "a number")),
        }
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// Refuses a key that is there with a value other than `value` and those in `words`.
    fn only(&self, key: &str, value: &Value, words: &[&str]) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(got) if got == value || got.as_str().is_some_and(|got| words.contains(&got)) => Ok(()),
            Some(got) if words.is_empty() => Err(self.unsupported(key, &got.to_string(), &value.to_string())),
            Some(got) => Err(self.unsupported(key, &got.to_string(), &words.join(" or "))),
        }
    }

    /// Refuses a scaled rotation; version 4 named the kind `type`, later ones `rope_type`.
    fn plain_rope(&self, key: &str) -> Result<()> {
        let Some(rope) = self.get(key) else { return Ok(()) };
        let kind = rope.get("rope_type").or_else(|| rope.get("type"));
        // Without a kind, anything but a base could be a scaling, or a table with a rotation for each kind of layer.
        let only_base = |rope: &serde_json::Map<String, Value>| {
            rope.keys().all(|key| ["rope_theta", "partial_rotary_factor"].contains(&key.as_str()))
        };
        match kind.map(Value::as_str) {
            Some(Some("default")) => {}
            None if rope.as_object().is_some_and(only_base) => {}
            _ => return Err(self.unsupported(key, &rope.to_string(), "absent, null or of rope_type \"default\"")),
        }
        self.whole_rotation(&format!("{key}.partial_rotary_factor"), rope.get("partial_rotary_factor"))
    }

    /// Refuses a rotation of a part of each head.
    fn whole_rotation(&self, key: &str, factor: Option<&Value>) -> Result<()> {
        match factor.filter(|factor| !factor.is_null()) {
            Some(factor) if factor.as_f64() != Some(1.0) => Err(self.unsupported(key, &factor.to_string(), "1")),
            _ => Ok(()),
        }
    }

    /// Refuses layers whose attention is not that over all earlier positions.
    fn full_attention(&self) -> Result<()> {
        let Some(kinds) = self.get("layer_types") else { return Ok(()) };
        match kinds.as_array() {
            Some(kinds) if kinds.iter().all(|kind| kind == "full_attention") => Ok(()),
            _ => Err(self.unsupported("layer_types", &kinds.to_string(), "\"full_attention\" throughout")),
        }
    }

    fn rope_theta(&self) -> Result<f64> {
        for key in ROPE_KEYS {
            let nested = self.get(key).and_then(|rope| rope.get("rope_theta"));
            if let Some(theta) = nested.filter(|theta| !theta.is_null()) {
                return theta.as_f64().ok_or_else(|| {
                    Error::Checkpoint(format!("{}: `{key}.rope_theta` must be a number, not {theta}", self.place))
                });
            }
        }
        self.number_or("rope_theta", ROPE_THETA)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_preset_comes_back() {
        for preset in crate::config::PRESETS {
            let config = ModelConfig { preset: None, ..Config::preset(preset.name).unwrap().model };
            let json: Value = serde_json::from_str(&to_json(&config).to_string()).unwrap();
            assert_eq!(from_json(&json, "config.json").unwrap(), config, "{}", preset.name);
        }
    }

    /// The JSON of a preset with one key replaced.
    fn with(preset: &str, key: &str, value: Value) -> Value {
        let mut json = to_json(&Config::preset(preset).unwrap().model);
        json[key] = value;
        json
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let cases = [
            ("tiny", "model_type", json!("mamba")),
            ("tiny", "model_type", Value::Null),
            ("tiny", "hidden_act", json!("gelu")),
            ("tiny", "attention_bias", json!(true)),
            ("tiny", "mlp_bias", json!(true)),
            ("tiny", "sliding_window", json!(1024)),
            ("tiny", "rope_scaling", json!({ "type": "linear", "factor": 2.0 })),
            ("tiny", "rope_scaling", json!({ "factor": 2.0 })),
            ("tiny", "rope_parameters", json!({ "rope_type": "llama3", "rope_theta": 5e5 })),
            ("tiny", "rope_parameters", json!({ "rope_theta": "big" })),
            ("tiny", "rope_scaling", json!({ "rope_type": "dynamic", "factor": 4.0 })),
            ("tiny", "rope_scaling", json!("linear")),
            ("tiny", "rope_parameters", json!({ "rope_theta": 1e4, "factor": 8.0 })),
            ("tiny", "rope_parameters", json!({ "full_attention": { "rope_type": "default", "rope_theta": 1e6 } })),
            ("tiny", "rope_parameters", json!({ "rope_type": "default", "partial_rotary_factor": 0.5 })),
            ("tiny", "rope_parameters", json!({ "rope_type": 3 })),
            ("tiny", "partial_rotary_factor", json!(0.25)),
            ("tiny", "rope_interleaved", json!(true)),
            ("tiny", "no_rope_layers", json!([1, 0])),
            ("tiny", "layer_types", json!(["full_attention", "sliding_attention"])),
            ("tiny", "quantization_config", json!({ "bits": 4 })),
            ("tiny", "head_dim", json!(48)),
            ("tiny", "hidden_size", Value::Null),
            ("tiny", "hidden_size", json!(-1)),
            ("tiny", "num_hidden_layers", json!(2.5)),
            ("tiny", "rms_norm_eps", json!("small")),
            ("tiny", "tie_word_embeddings", json!("yes")),
            ("gpt2", "activation_function", json!("relu")),
            ("gpt2", "scale_attn_weights", json!(false)),
            ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true)),
            ("gpt2", "add_cross_attention", json!(true)),
            ("gpt2", "n_layer", json!(0)),
        ];
        for (preset, key, value) in cases {
            let json = with(preset, key, value.clone());
            let message = from_json(&json, "folder/config.json").unwrap_err().to_string();
            assert!(message.contains(key) && message.contains("folder/config.json"), "{key} = {value}: {message}");
        }
        for (key, value, remedy) in [
            (
                "hidden_act",
                json!("gelu"),
                "`hidden_act` is \"gelu\", which this model does not support; it must be silu or swish",
            ),
            ("mlp_bias", json!(true), "`mlp_bias` is true, which this model does not support; it must be false"),
        ] {
            let message = from_json(&with("tiny", key, value), "config.json").unwrap_err().to_string();
            assert!(message.contains(remedy), "{message}");
        }
    }

    #[test]
    fn older_and_newer_files_are_read() {
        let theta = |json: &Value| from_json(json, "config.json").unwrap().rope_theta;
        let mut older = with("tiny", "rope_theta", json!(5e5));
        older["rope_parameters"] = Value::Null;
        assert_eq!(theta(&older), 5e5);
        let mut newer = with("tiny", "rope_theta", Value::Null);
        newer["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 1e6 });
        assert_eq!(theta(&newer), 1e6);
        assert_eq!(theta(&with("tiny", "rope_scaling", Value::Null)), 10000.0);
        let mut scaling = with("tiny", "rope_parameters", Value::Null);
        scaling["rope_scaling"] = json!({ "rope_type": "default", "rope_theta": 3e4 });
        assert_eq!(theta(&scaling), 3e4);
        scaling["rope_scaling"] = json!({ "type": "default" });
        assert_eq!(theta(&scaling), 10000.0);
        let bare = with("tiny", "rope_parameters", json!({ "rope_theta": 2e4, "partial_rotary_factor": 1.0 }));
        assert_eq!(theta(&bare), 2e4);
        for harmless in [
            ("hidden_act", json!("swish")),
            ("layer_types", json!(["full_attention"])),
            ("rope_interleaved", json!(false)),
            ("partial_rotary_factor", json!(1)),
            ("attention_dropout", json!(0.1)),
        ] {
            assert_eq!(theta(&with("tiny", harmless.0, harmless.1)), 10000.0);
        }

        let published = json!({
            "model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
            "n_ctx": 1024, "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "activation_function": "gelu_new",
        });
        let ours = Config::preset("gpt2").unwrap().model;
        assert_eq!(from_json(&published, "").unwrap(), ModelConfig { preset: None, ..ours });
    }
}
