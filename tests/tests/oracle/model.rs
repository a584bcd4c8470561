//! A GPT in index loops over f64, one window at a time, from the published tensors: q, k, v and gate, up apart (LLaMA), matrices
//! [in, out] (GPT-2). Nothing is fused, batched or cached.

use std::collections::HashMap;

use patchgpt_models::config::{Dialect, ModelConfig};

/// A row per position.
type Rows = Vec<Vec<f64>>;

#[derive(Clone)]
pub(crate) struct Oracle {
    pub(crate) config: ModelConfig,
    pub(crate) weights: HashMap<String, Vec<f64>>,
}

/// Mean over all windows of `len` tokens of -log p of each token but the first, given those before it.
pub(crate) fn mean_loss(oracle: &Oracle, tokens: &[i32], len: usize) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for window in tokens.chunks_exact(len) {
        let logits = oracle.logits(&window[..len - 1]);
        for (row, &target) in logits.iter().zip(&window[1..]) {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = row.iter().map(|x| (x - largest).exp()).sum();
            sum += largest + total.ln() - row[target as usize];
            count += 1.0;
        }
    }
    sum / count
}

impl Oracle {
    fn weight(&self, name: &str) -> &[f64] {
        &self.weights[name]
    }

    /// Logits of every position.
    pub(crate) fn logits(&self, tokens: &[i32]) -> Rows {
        let llama = self.config.dialect == Dialect::Llama;
        let table = if llama { "model.embed_tokens.weight" } else { "transformer.wte.weight" };
        let head = if self.config.tied_head { table } else { "lm_head.weight" };
        let c = self.config.hidden;
        let mut x: Rows = Vec::new();
        for (position, &token) in tokens.iter().enumerate() {
            let mut row = self.weight(table)[token as usize * c..][..c].to_vec();
            if !llama {
                for (i, value) in row.iter_mut().enumerate() {
                    *value += self.weight("transformer.wpe.weight")[position * c + i];
                }
            }
            x.push(row);
        }
        for layer in 0..self.config.layers {
            x = if llama { self.llama_block(&x, layer) } else { self.gpt2_block(&x, layer) };
        }
        let x = if llama { self.rms_norm(&x, "model.norm") } else { self.layer_norm(&x, "transformer.ln_f") };
        product(&x, self.weight(head), c, 1, self.config.vocab_size)
    }

    fn llama_block(&self, x: &Rows, layer: usize) -> Rows {
        let (c, f, d) = (self.config.hidden, self.config.ffn, self.config.hidden / self.config.heads);
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let linear = |x: &Rows, part: &str, inputs: usize, outputs: usize| {
            product(x, self.weight(&name(&format!("{part}.weight"))), inputs, 1, outputs)
        };
        let normed = self.rms_norm(x, &name("input_layernorm"));
        let q = self.rotate(&linear(&normed, "self_attn.q_proj", c, self.config.heads * d));
        let k = self.rotate(&linear(&normed, "self_attn.k_proj", c, self.config.kv_heads * d));
        let v = linear(&normed, "self_attn.v_proj", c, self.config.kv_heads * d);
        let x = sum(x, &linear(&self.attention(&q, &k, &v), "self_attn.o_proj", c, c));
        let normed = self.rms_norm(&x, &name("post_attention_layernorm"));
        let mut gated = linear(&normed, "mlp.gate_proj", c, f);
        let up = linear(&normed, "mlp.up_proj", c, f);
        for (gate, up) in gated.iter_mut().flatten().zip(up.iter().flatten()) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
        sum(&x, &linear(&gated, "mlp.down_proj", f, c))
    }

    fn gpt2_block(&self, x: &Rows, layer: usize) -> Rows {
        let (c, f) = (self.config.hidden, self.config.ffn);
        let name = |part: &str| format!("transformer.h.{layer}.{part}");
        let linear = |x: &Rows, part: &str, outputs: usize| {
            let mut out = product(x, self.weight(&name(&format!("{part}.weight"))), 1, outputs, outputs);
            for row in &mut out {
                for (value, bias) in row.iter_mut().zip(self.weight(&name(&format!("{part}.bias")))) {
                    *value += bias;
                }
            }
            out
        };
        let joined = linear(&self.layer_norm(x, &name("ln_1")), "attn.c_attn", 3 * c);
        let part = |i: usize| -> Rows { joined.iter().map(|row| row[i * c..(i + 1) * c].to_vec()).collect() };
        let x = sum(x, &linear(&self.attention(&part(0), &part(1), &part(2)), "attn.c_proj", c));
        let mut hidden = linear(&self.layer_norm(&x, &name("ln_2")), "mlp.c_fc", f);
        for h in hidden.iter_mut().flatten() {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (*h + 0.044715 * h.powi(3));
            *h = 0.5 * *h * (1.0 + inner.tanh());
        }
        sum(&x, &linear(&hidden, "mlp.c_proj", c))
    }

    fn rms_norm(&self, x: &Rows, name: &str) -> Rows {
        let weight = self.weight(&format!("{name}.weight"));
        let norm = |row: &Vec<f64>| {
            let square: f64 = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
            let root = (square + self.config.norm_eps).sqrt();
            row.iter().zip(weight).map(|(v, w)| v / root * w).collect()
        };
        x.iter().map(norm).collect()
    }

    fn layer_norm(&self, x: &Rows, name: &str) -> Rows {
        let weight = self.weight(&format!("{name}.weight"));
        let bias = self.weight(&format!("{name}.bias"));
        let norm = |row: &Vec<f64>| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let root = (variance + self.config.norm_eps).sqrt();
            (0..row.len()).map(|i| (row[i] - mean) / root * weight[i] + bias[i]).collect()
        };
        x.iter().map(norm).collect()
    }

    /// Turns the pair (i, i + D/2) of every head by position * theta^(-2i/D).
    fn rotate(&self, x: &Rows) -> Rows {
        let d = self.config.hidden / self.config.heads;
        let mut out = x.clone();
        for (position, row) in x.iter().enumerate() {
            for (at, &value) in row.iter().enumerate() {
                let (i, first) = (at % d % (d / 2), at % d < d / 2);
                let angle = position as f64 * self.config.rope_theta.powf(-2.0 * i as f64 / d as f64);
                let other = if first { -row[at + d / 2] } else { row[at - d / 2] };
                out[position][at] = value * angle.cos() + other * angle.sin();
            }
        }
        out
    }

    /// Softmax attention of every query head over its group's keys up to its own position.
    fn attention(&self, q: &Rows, k: &Rows, v: &Rows) -> Rows {
        let d = self.config.hidden / self.config.heads;
        let mut out = vec![vec![0.0; self.config.hidden]; q.len()];
        for head in 0..self.config.heads {
            let group = head * self.config.kv_heads / self.config.heads;
            for t in 0..q.len() {
                let score = |s: usize| -> f64 {
                    (0..d).map(|i| q[t][head * d + i] * k[s][group * d + i]).sum::<f64>() / (d as f64).sqrt()
                };
                let weights: Vec<f64> = (0..=t).map(|s| score(s).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (s, weight) in weights.iter().enumerate() {
                    for i in 0..d {
                        out[t][head * d + i] += weight / total * v[s][group * d + i];
                    }
                }
            }
        }
        out
    }
}

/// `out[t][o] = sum_i x[t][i] * w[o * row + i * column]`, with (row, column) the matrix's strides.
fn product(x: &Rows, w: &[f64], row: usize, column: usize, outputs: usize) -> Rows {
    let output = |input: &Vec<f64>, o: usize| -> f64 {
        input.iter().enumerate().map(|(i, value)| value * w[o * row + i * column]).sum()
    };
    x.iter().map(|input| (0..outputs).map(|o| output(input, o)).collect()).collect()
}

fn sum(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}
