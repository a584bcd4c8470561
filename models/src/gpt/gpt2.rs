//! A block of the GPT-2 dialect, x [B, T, C]: h = x + proj(attention(attn(layer_norm(x)))), h + proj(gelu(fc(layer_norm(h)))),
//! every product with a bias. Source: Radford et al., "Language models are unsupervised multitask learners", 2019.
//! Matrices are [out, in] here and transposed in the published layout; those into the residual stream start smaller by
//! sqrt(2 * layers).

use patchgpt_autograd::{Result as GraphResult, Var};

use super::Block;
use super::stream::{Norm, Stream};
use crate::Result;
use crate::config::ModelConfig;
use crate::parameters::{Init, ParameterSpec, Parameters};

pub(super) const EMBEDDING: &str = "transformer.wte.weight";
pub(super) const POSITIONS: &str = "transformer.wpe.weight";

/// A weight and its bias.
struct Pair {
    weight: Var,
    bias: Var,
}

impl Pair {
    fn linear(&self, x: &Var) -> GraphResult<Var> {
        x.linear(&self.weight, Some(&self.bias))
    }

    fn linear_gelu(&self, x: &Var) -> GraphResult<Var> {
        x.linear_gelu(&self.weight, Some(&self.bias))
    }
}

/// The parameters of one block.
pub(super) struct Gpt2Block {
    attention_norm: Norm,
    attention: Pair,
    attention_output: Pair,
    ffn_norm: Norm,
    ffn: Pair,
    ffn_output: Pair,
}

/// Name of a parameter of a layer.
fn name(layer: usize, part: &str, kind: &str) -> String {
    format!("transformer.h.{layer}.{part}.{kind}")
}

pub(super) fn specs(config: &ModelConfig, layer: usize) -> Vec<ParameterSpec> {
    let (c, f) = (config.hidden, config.ffn);
    let normal = Init::Normal { std: config.init_std };
    let residual = Init::Normal { std: config.init_std / (2.0 * config.layers as f64).sqrt() };
    let norm = |part| {
        [("weight", Init::Ones), ("bias", Init::Zeros)]
            .map(|(kind, init)| ParameterSpec::new(name(layer, part, kind), &[c], init))
    };
    let linear = |part, rows: usize, columns: usize, init| {
        [
            ParameterSpec::new(name(layer, part, "weight"), &[rows, columns], init),
            ParameterSpec::new(name(layer, part, "bias"), &[rows], Init::Zeros),
        ]
    };
    [
        norm("ln_1"),
        linear("attn.c_attn", 3 * c, c, normal),
        linear("attn.c_proj", c, c, residual),
        norm("ln_2"),
        linear("mlp.c_fc", f, c, normal),
        linear("mlp.c_proj", c, f, residual),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl Gpt2Block {
    pub(super) fn new(config: &ModelConfig, parameters: &Parameters, layer: usize) -> Result<Gpt2Block> {
        let pair = |part| -> Result<Pair> {
            let var = |kind| parameters.var(&name(layer, part, kind)).cloned();
            Ok(Pair { weight: var("weight")?, bias: var("bias")? })
        };
        let norm = |part| -> Result<Norm> {
            let Pair { weight, bias } = pair(part)?;
            Ok(Norm::Layer { weight, bias, eps: config.norm_eps })
        };
        Ok(Gpt2Block {
            attention_norm: norm("ln_1")?,
            attention: pair("attn.c_attn")?,
            attention_output: pair("attn.c_proj")?,
            ffn_norm: norm("ln_2")?,
            ffn: pair("mlp.c_fc")?,
            ffn_output: pair("mlp.c_proj")?,
        })
    }
}

impl Block for Gpt2Block {
    fn forward(&self, stream: Stream, attend: &dyn Fn(&Var) -> GraphResult<Var>) -> GraphResult<Stream> {
        let (x, normed) = stream.normalised(&self.attention_norm)?;
        let attended = attend(&self.attention.linear(&normed)?)?;
        let branch = self.attention_output.linear(&attended)?;
        let (x, normed) = Stream::with(x, branch).normalised(&self.ffn_norm)?;
        let activated = self.ffn.linear_gelu(&normed)?;
        Ok(Stream::with(x, self.ffn_output.linear(&activated)?))
    }
}
