//! Causal self-attention of a joined projection x [B, T, (H + 2G) D], q first, then k, then v: rotate q and k, attend; y [B, T, H D].
//!
//! Backward writes d_q, d_k and d_v into the column slices of one d_x, then turns d_q and d_k back in place. The formulas are those of
//! `rope.rs` and `causal_attention.rs`.

use patchgpt_tensor::{CausalAttention as Output, Destination, Tensor};

use crate::function::apply_one;
use crate::{Context, Error, Function, Gradients, Result, Saved, Var};

struct SelfAttention {
    heads: usize,
    key_value_heads: usize,
    rope: Option<(Tensor, Tensor)>,
    scale: f64,
}

/// q, k and v of a joined tensor [B, T, H + 2G, D].
struct Slices {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl SelfAttention {
    /// [B, T, H + 2G, D]
    fn joined_shape(&self, x: &[usize]) -> Result<[usize; 4]> {
        let joined = self.heads + 2 * self.key_value_heads;
        match *x {
            [b, t, width] if self.heads > 0 && self.key_value_heads > 0 && width % joined == 0 => {
                Ok([b, t, joined, width / joined])
            }
            _ => Err(Error::value(
                "self_attention",
                format!(
                    "[B, T, (H + 2G) * D] with {} heads and {} key-value heads expected, got {x:?}",
                    self.heads, self.key_value_heads
                ),
            )),
        }
    }

    fn slices(&self, joined: &Tensor) -> patchgpt_tensor::Result<Slices> {
        let (h, g) = (self.heads, self.key_value_heads);
        Ok(Slices { q: joined.narrow(2, 0, h)?, k: joined.narrow(2, h, g)?, v: joined.narrow(2, h + g, g)? })
    }

    /// The heads that are rotated: those of q and k.
    fn rotated(&self, joined: &Tensor) -> patchgpt_tensor::Result<Tensor> {
        joined.narrow(2, 0, self.heads + self.key_value_heads)
    }
}

impl Function for SelfAttention {
    fn name(&self) -> &'static str {
        "self_attention"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let shape = self.joined_shape(inputs[0].shape())?;
        let joined = inputs[0].reshape(&shape)?;
        let mut slices = self.slices(&joined)?;
        if let Some((cos, sin)) = &self.rope {
            let turned = self.rotated(&joined)?.rope(cos, sin, false)?;
            slices.q = turned.narrow(2, 0, self.heads)?;
            slices.k = turned.narrow(2, self.heads, self.key_value_heads)?;
        }
        let Slices { q, k, v } = slices;
        let Output { output, lse } = q.causal_attention(&k, &v, self.scale)?;
        for saved in [&q, &k, &v, &output, &lse] {
            context.save(saved);
        }
        if let Some((cos, sin)) = &self.rope {
            context.save(cos);
            context.save(sin);
        }
        let [b, t, _, d] = shape;
        Ok(vec![output.reshape(&[b, t, self.heads * d])?])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let shape = self.joined_shape(d_inputs.shape(0))?;
        let (q, k, v) = (saved.get(0)?, saved.get(1)?, saved.get(2)?);
        let attention = Output { output: saved.get(3)?.clone(), lse: saved.get(4)?.clone() };
        let d_y = saved.d_out(d_outputs)?.reshape(q.shape())?;
        let Some((cos, sin)) = &self.rope else {
            return d_inputs.write(0, |d_x| {
                let slices = self.slices(&d_x.tensor.view(&shape)?)?;
                let gradients = [&slices.q, &slices.k, &slices.v].map(|tensor| Destination { tensor, ..d_x });
                q.causal_attention_backward(k, v, &attention, self.scale, &d_y, gradients)
            });
        };
        // The rotation is undone in place, so that nothing else may be in this memory yet.
        let d_x = d_inputs.scratch(0)?;
        let joined = d_x.view(&shape)?;
        let slices = self.slices(&joined)?;
        let gradients = [&slices.q, &slices.k, &slices.v].map(Destination::write);
        q.causal_attention_backward(k, v, &attention, self.scale, &d_y, gradients)?;
        let rotated = self.rotated(&joined)?;
        rotated.rope_into(cos, sin, true, &rotated)?;
        drop((joined, slices, rotated));
        d_inputs.add(0, d_x)
    }
}

impl Var {
    /// Causal self-attention of this joined projection [B, T, (H + 2G) * D] (q, k, v along the last dimension, H `heads`, G `key_value_heads`)
    /// with q and k rotated by `rope`, cos and sin [T, D/2], if given: [B, T, H * D].
    ///
    /// # Errors
    /// A width that H + 2G does not divide; H that G does not divide.
    pub fn self_attention(
        &self,
        heads: usize,
        key_value_heads: usize,
        rope: Option<(&Tensor, &Tensor)>,
        scale: f64,
    ) -> Result<Var> {
        let function =
            SelfAttention { heads, key_value_heads, rope: rope.map(|(cos, sin)| (cos.clone(), sin.clone())), scale };
        apply_one(function, &[self])
    }
}
