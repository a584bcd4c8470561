//! Causal attention with grouped key-value heads.

use super::{expect_shape, same_kind, through};
use crate::{Destination, Error, Result, Tensor};

/// What [`Tensor::causal_attention`] returns and its gradient needs.
pub struct CausalAttention {
    /// [B, T, H, D]
    pub output: Tensor,
    /// [B, H, T]: log-sum-exp of every masked row of scores.
    pub lse: Tensor,
}

fn check(op: &'static str, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
    same_kind(op, &[q, k, v])?;
    let (&[b, t, h, d], &[b2, s, g, d2]) = (q.shape(), k.shape()) else {
        return Err(Error::shape(
            op,
            format!("q [B, T, H, D] and k [B, S, G, D] expected, got {:?} and {:?}", q.shape(), k.shape()),
        ));
    };
    expect_shape(op, "v", v, k.shape())?;
    if b != b2 || d != d2 || t > s || g == 0 || h % g != 0 {
        return Err(Error::shape(
            op,
            format!(
                "q [B, T, H, D] and k [B, S, G, D] with T <= S and H a multiple of G expected, got {:?} and {:?}",
                q.shape(),
                k.shape()
            ),
        ));
    }
    Ok(())
}

impl Tensor {
    /// `softmax(scale * q k^T + causal mask) v` per head, without the T x S scores in memory.
    ///
    /// This tensor is q [B, T, H, D]; k and v [B, S, G, D], H a multiple of G, T <= S: query t sees the keys 0..=t + S - T.
    pub fn causal_attention(&self, k: &Tensor, v: &Tensor, scale: f64) -> Result<CausalAttention> {
        let op = "causal_attention";
        check(op, self, k, v)?;
        let (q, k, v) = (self.contiguous_rows()?, k.contiguous_rows()?, v.contiguous_rows()?);
        let output = Tensor::empty(q.shape(), q.dtype(), q.device())?;
        let lse = Tensor::empty(&[q.dim(0), q.dim(2), q.dim(1)], q.dtype().accumulator(), q.device())?;
        q.device().backend().causal_attention(&output, &lse, &q, &k, &v, scale)?;
        output.mark_written();
        lse.mark_written();
        Ok(CausalAttention { output, lse })
    }

    /// Gradients of [`Tensor::causal_attention`] for q (this tensor), k and v, in this order.
    pub fn causal_attention_backward(
        &self,
        k: &Tensor,
        v: &Tensor,
        saved: &CausalAttention,
        scale: f64,
        d_out: &Tensor,
        gradients: [Destination; 3],
    ) -> Result<()> {
        let op = "causal_attention_backward";
        check(op, self, k, v)?;
        same_kind(op, &[self, d_out, gradients[0].tensor, gradients[1].tensor, gradients[2].tensor])?;
        expect_shape(op, "d_out", d_out, self.shape())?;
        expect_shape(op, "the saved output", &saved.output, self.shape())?;
        expect_shape(op, "lse", &saved.lse, &[self.dim(0), self.dim(2), self.dim(1)])?;
        for (what, gradient, x) in [("d_q", gradients[0], self), ("d_k", gradients[1], k), ("d_v", gradients[2], v)] {
            expect_shape(op, what, gradient.tensor, x.shape())?;
        }
        let (q, k, v, d_out) =
            (self.contiguous_rows()?, k.contiguous_rows()?, v.contiguous_rows()?, d_out.contiguous_rows()?);
        let [d_q, d_k, d_v] = gradients;
        let rows = |d: &Destination| d.tensor.layout().has_contiguous_rows();
        through(op, d_q, rows(&d_q), |d_q| {
            through(op, d_k, rows(&d_k), |d_k| {
                through(op, d_v, rows(&d_v), |d_v| {
                    let backend = q.device().backend();
                    backend.causal_attention_backward(
                        d_q,
                        d_k,
                        d_v,
                        &d_out,
                        &q,
                        &k,
                        &v,
                        &saved.output,
                        &saved.lse,
                        scale,
                    )
                })
            })
        })
    }
}
