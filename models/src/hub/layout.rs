//! Names and shapes of the published layout, and where each tensor lies in this model's parameters.
//! LLaMA publishes q, k, v and gate, up apart: they are rows of joined matrices. GPT-2's matrices are published
//! transposed, [in, out]. A tied head has no tensor of its own.

use std::ops::Range;

use patchgpt_tensor::Tensor;

use crate::Result;
use crate::config::{Dialect, ModelConfig};

/// A tensor of the published layout and the part of a parameter that holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct HubTensor {
    /// Its name in transformers' state dict.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Name of the parameter here.
    pub parameter: String,
    /// Rows of the parameter; all if `None`.
    rows: Option<Range<usize>>,
    transposed: bool,
}

impl HubTensor {
    /// A tensor that is a parameter as it is.
    fn whole(name: impl Into<String>, shape: &[usize]) -> HubTensor {
        let name = name.into();
        HubTensor { parameter: name.clone(), name, shape: shape.to_vec(), rows: None, transposed: false }
    }

    /// A matrix [in, out] that is a parameter transposed.
    fn transposed(name: String, inputs: usize, outputs: usize) -> HubTensor {
        HubTensor { transposed: true, ..HubTensor::whole(name, &[inputs, outputs]) }
    }

    /// This tensor as a view of its parameter, or of the parameter's gradient or moment.
    ///
    /// # Errors
    /// A tensor of another shape than the parameter's.
    pub fn view(&self, parameter: &Tensor) -> Result<Tensor> {
        let mut view = parameter.clone();
        if let Some(rows) = &self.rows {
            view = view.narrow(0, rows.start, rows.len())?;
        }
        Ok(if self.transposed { view.t()? } else { view })
    }
}

/// Consecutive rows of one parameter under names of their own: `parts` are names and numbers of rows.
fn joined(parameter: String, columns: usize, parts: &[(String, usize)]) -> Vec<HubTensor> {
    let mut start = 0;
    let part = |(name, rows): &(String, usize)| {
        let range = start..start + rows;
        start = range.end;
        HubTensor { parameter: parameter.clone(), rows: Some(range), ..HubTensor::whole(name, &[*rows, columns]) }
    };
    parts.iter().map(part).collect()
}

/// Every tensor of the published layout of a model.
pub fn tensors(config: &ModelConfig) -> Vec<HubTensor> {
    let table = [config.vocab_size, config.hidden];
    let mut tensors = match config.dialect {
        Dialect::Llama => {
            let mut tensors = vec![HubTensor::whole("model.embed_tokens.weight", &table)];
            tensors.extend((0..config.layers).flat_map(|layer| llama_layer(config, layer)));
            tensors.push(HubTensor::whole("model.norm.weight", &[config.hidden]));
            tensors
        }
        Dialect::Gpt2 => {
            let positions = [config.max_positions, config.hidden];
            let mut tensors = vec![
                HubTensor::whole("transformer.wte.weight", &table),
                HubTensor::whole("transformer.wpe.weight", &positions),
            ];
            tensors.extend((0..config.layers).flat_map(|layer| gpt2_layer(config, layer)));
            tensors.push(HubTensor::whole("transformer.ln_f.weight", &[config.hidden]));
            tensors.push(HubTensor::whole("transformer.ln_f.bias", &[config.hidden]));
            tensors
        }
    };
    if !config.tied_head {
        tensors.push(HubTensor::whole("lm_head.weight", &table));
    }
    tensors
}

fn llama_layer(config: &ModelConfig, layer: usize) -> Vec<HubTensor> {
    let (c, f, d) = (config.hidden, config.ffn, config.head_dim());
    let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
    let (queries, groups) = (config.heads * d, config.kv_heads * d);
    let mut tensors = vec![
        HubTensor::whole(name("input_layernorm"), &[c]),
        HubTensor::whole(name("self_attn.o_proj"), &[c, queries]),
        HubTensor::whole(name("post_attention_layernorm"), &[c]),
        HubTensor::whole(name("mlp.down_proj"), &[c, f]),
    ];
    tensors.extend(joined(
        name("self_attn.qkv_proj"),
        c,
        &[(name("self_attn.q_proj"), queries), (name("self_attn.k_proj"), groups), (name("self_attn.v_proj"), groups)],
    ));
    tensors.extend(joined(name("mlp.gate_up_proj"), c, &[(name("mlp.gate_proj"), f), (name("mlp.up_proj"), f)]));
    tensors
}

fn gpt2_layer(config: &ModelConfig, layer: usize) -> Vec<HubTensor> {
    let (c, f) = (config.hidden, config.ffn);
    let name = |part: &str| format!("transformer.h.{layer}.{part}");
    let mut tensors = Vec::new();
    for norm in ["ln_1", "ln_2"] {
        for kind in ["weight", "bias"] {
            tensors.push(HubTensor::whole(name(&format!("{norm}.{kind}")), &[c]));
        }
    }
    for (part, inputs, outputs) in
        [("attn.c_attn", c, 3 * c), ("attn.c_proj", c, c), ("mlp.c_fc", c, f), ("mlp.c_proj", f, c)]
    {
        tensors.push(HubTensor::transposed(name(&format!("{part}.weight")), inputs, outputs));
        tensors.push(HubTensor::whole(name(&format!("{part}.bias")), &[outputs]));
    }
    tensors
}
