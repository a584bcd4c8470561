//! A block of the LLaMA dialect, x [B, T, C]: h = x + o(attention(qkv(rms_norm(x)))), h + down(swiglu(gate_up(rms_norm(h)))).
//! Source: Touvron et al., arXiv 2302.13971; grouped key-value heads: Ainslie et al., arXiv 2305.13245.
//! qkv [(H+2G)*D, C] joins three matrices of the published layout, gate_up [2F, C] two.

use patchgpt_autograd::{Result as GraphResult, Var};

use super::Block;
use super::stream::{Norm, Stream};
use crate::Result;
use crate::config::ModelConfig;
use crate::parameters::{Init, ParameterSpec, Parameters};

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

/// The parameters of one block.
pub(super) struct LlamaBlock {
    attention_norm: Norm,
    qkv: Var,
    output: Var,
    ffn_norm: Norm,
    gate_up: Var,
    down: Var,
}

/// Name of a parameter of a layer.
fn name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}.weight")
}

pub(super) fn specs(config: &ModelConfig, layer: usize) -> Vec<ParameterSpec> {
    let (c, f) = (config.hidden, config.ffn);
    let joined = (config.heads + 2 * config.kv_heads) * config.head_dim();
    let normal = Init::Normal { std: config.init_std };
    vec![
        ParameterSpec::new(name(layer, "input_layernorm"), &[c], Init::Ones),
        ParameterSpec::new(name(layer, "self_attn.qkv_proj"), &[joined, c], normal),
        ParameterSpec::new(name(layer, "self_attn.o_proj"), &[c, config.heads * config.head_dim()], normal),
        ParameterSpec::new(name(layer, "post_attention_layernorm"), &[c], Init::Ones),
        ParameterSpec::new(name(layer, "mlp.gate_up_proj"), &[2 * f, c], normal),
        ParameterSpec::new(name(layer, "mlp.down_proj"), &[c, f], normal),
    ]
}

impl LlamaBlock {
    pub(super) fn new(config: &ModelConfig, parameters: &Parameters, layer: usize) -> Result<LlamaBlock> {
        let var = |part| parameters.var(&name(layer, part)).cloned();
        let norm = |part| -> Result<Norm> { Ok(Norm::Rms { weight: var(part)?, eps: config.norm_eps }) };
        Ok(LlamaBlock {
            attention_norm: norm("input_layernorm")?,
            qkv: var("self_attn.qkv_proj")?,
            output: var("self_attn.o_proj")?,
            ffn_norm: norm("post_attention_layernorm")?,
            gate_up: var("mlp.gate_up_proj")?,
            down: var("mlp.down_proj")?,
        })
    }
}

impl Block for LlamaBlock {
    fn forward(&self, stream: Stream, attend: &dyn Fn(&Var) -> GraphResult<Var>) -> GraphResult<Stream> {
        let (x, normed) = stream.normalised(&self.attention_norm)?;
        let attended = attend(&normed.linear(&self.qkv, None)?)?;
        let branch = attended.linear(&self.output, None)?;
        let (x, normed) = Stream::with(x, branch).normalised(&self.ffn_norm)?;
        let gated = normed.linear(&self.gate_up, None)?.swiglu()?;
        Ok(Stream::with(x, gated.linear(&self.down, None)?))
    }
}
