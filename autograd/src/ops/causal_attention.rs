//! Causal attention per head, `y = softmax(scale q k^T + mask) v`: q and y [B, T, H, D], k and v [B, S, G, D], H a multiple of G.
//!
//! Saves q, k, v, y and the log-sum-exp of the scores, which are computed again in backward: with `p = e^(scale q k^T - lse)` and
//! `ds = p (d_y v^T - rowsum(d_y y))`: `d_v = p^T d_y`, `d_q = scale ds k`, `d_k = scale ds^T q`. Source: Dao, arXiv 2307.08691.

use patchgpt_tensor::{CausalAttention as Output, Destination, Tensor};

use crate::function::apply_one;
use crate::{Context, Function, Gradients, Result, Saved, Var};

struct CausalAttention {
    scale: f64,
}

impl Function for CausalAttention {
    fn name(&self) -> &'static str {
        "causal_attention"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let Output { output, lse } = inputs[0].causal_attention(inputs[1], inputs[2], self.scale)?;
        for saved in [inputs[0], inputs[1], inputs[2], &output, &lse] {
            context.save(saved);
        }
        Ok(vec![output])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let ([q, k, v, output, lse], d_y) = (saved.tensors()?, saved.d_out(d_outputs)?);
        let attention = Output { output: output.clone(), lse: lse.clone() };
        // The kernel writes all three gradients; one that nobody wants goes to memory that is dropped.
        let mut unwanted = [None, None, None];
        for (i, unwanted) in unwanted.iter_mut().enumerate() {
            if !d_inputs.wanted(i) {
                *unwanted = Some(d_inputs.scratch(i)?);
            }
        }
        d_inputs.write_many([0, 1, 2], |wanted| {
            let destination = |i: usize| wanted[i].or(unwanted[i].as_ref().map(Destination::write));
            match [0, 1, 2].map(destination) {
                [Some(d_q), Some(d_k), Some(d_v)] => {
                    q.causal_attention_backward(k, v, &attention, self.scale, d_y, [d_q, d_k, d_v])
                }
                _ => Ok(()),
            }
        })
    }
}

impl Var {
    /// `softmax(scale * q k^T + causal mask) v` per head. This value is q [B, T, H, D]; k and v [B, S, G, D], H a multiple of G, T <= S: query t sees
    /// the keys 0..=t + S - T.
    pub fn causal_attention(&self, k: &Var, v: &Var, scale: f64) -> Result<Var> {
        apply_one(CausalAttention { scale }, &[self, k, v])
    }
}
