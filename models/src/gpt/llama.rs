//! A block of the LLaMA dialect, x [B, T, C]: h = x + o(attention(qkv(rms_norm(x)))), h + down(swiglu(gate_up(rms_norm(h)))).
//! Source: Touvron et al., arXiv 2302.13971; grouped key-value heads: Ainslie et al., arXiv 2305.13245.
//! qkv [(H+2G)*D, C] joins three matrices of the published layout, gate_up [2F, C] two.

use patchgpt_autograd::{Result as GraphResult, Var};

use super::Block;
use crate::Result;
use crate::config::ModelConfig;
use crate::parameters::{Init, ParameterSpec, Parameters};

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

/// The parameters of one block and the constant of its norms.
pub(super) struct LlamaBlock {
    attention_norm: Var,
    qkv: Var,
    output: Var,
    ffn_norm: Var,
    gate_up: Var,
    down: Var,
    eps: f64,
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
        Ok(LlamaBlock {
            attention_norm: var("input_layernorm")?,
            qkv: var("self_attn.qkv_proj")?,
            output: var("self_attn.o_proj")?,
            ffn_norm: var("post_attention_layernorm")?,
            gate_up: var("mlp.gate_up_proj")?,
            down: var("mlp.down_proj")?,
            eps: config.norm_eps,
        })
    }
}

impl Block for LlamaBlock {
    fn forward(&self, x: &Var, attend: &dyn Fn(&Var) -> GraphResult<Var>) -> GraphResult<Var> {
        let joined = x.rms_norm(&self.attention_norm, self.eps)?.linear(&self.qkv, None)?;
        let x = x.add(&attend(&joined)?.linear(&self.output, None)?)?;
        let gated = x.rms_norm(&self.ffn_norm, self.eps)?.linear(&self.gate_up, None)?.swiglu()?;
        x.add(&gated.linear(&self.down, None)?)
    }
}
