//! Norms and AdamW out of element-wise kernels and reductions, each result a tensor in the accumulator's type: what they cost without kernels of their
//! own, and a second implementation to hold those against. Every operation is a pass over memory.

use patchgpt_tensor::{
    AdamW, Backend, Binary, DType, Destination, Reduction, Residual, Result, Rounding, Tensor, Unary,
};

use super::{layer_norm, rms_norm};
use crate::device::Cuda;
use crate::error::backend;

/// Operations whose results are new tensors.
struct Composer<'a>(&'a Cuda);

impl Composer<'_> {
    fn converted(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        let out = Tensor::empty(x.shape(), dtype, x.device())?;
        self.0.copy(&out, x)?;
        Ok(out)
    }

    /// `x` in its accumulator's type.
    fn wide(&self, x: &Tensor) -> Result<Tensor> {
        self.converted(x, x.dtype().accumulator())
    }

    fn unary(&self, op: Unary, x: &Tensor) -> Result<Tensor> {
        let out = Tensor::empty(x.shape(), x.dtype(), x.device())?;
        self.0.unary(&out, op, x)?;
        Ok(out)
    }

    /// `op(a, b)` in the shape of a.
    fn binary(&self, op: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let out = Tensor::empty(a.shape(), a.dtype(), a.device())?;
        self.0.binary(Destination::write(&out), op, a, &b.broadcast_to(a.shape())?)?;
        Ok(out)
    }

    fn mul(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.binary(Binary::Mul, a, b)
    }

    fn sub(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.binary(Binary::Sub, a, b)
    }

    /// Sums over dimension `dim`, which becomes 1.
    fn sum(&self, x: &Tensor, dim: usize) -> Result<Tensor> {
        let mut shape = x.shape().to_vec();
        shape[dim] = 1;
        let out = Tensor::empty(&shape, x.dtype(), x.device())?;
        self.0.reduce(Destination::write(&out), Reduction::Sum, x)?;
        Ok(out)
    }

    /// `mean + more` of each row, [N, 1].
    fn mean(&self, x: &Tensor, more: f64) -> Result<Tensor> {
        self.unary(Unary::Affine { mul: 1.0 / x.dim(1) as f64, add: more }, &self.sum(x, 1)?)
    }

    /// `1 / sqrt(mean(x^2) + eps)` of each row, [N, 1].
    fn rstd(&self, x: &Tensor, eps: f64) -> Result<Tensor> {
        self.unary(Unary::Recip, &self.unary(Unary::Sqrt, &self.mean(&self.mul(x, x)?, eps)?)?)
    }

    /// Writes or adds, rounded once.
    fn put(&self, out: Destination, x: &Tensor) -> Result<()> {
        match out.accumulate {
            true => self.0.copy(out.tensor, &self.binary(Binary::Add, x, &self.converted(out.tensor, x.dtype())?)?),
            false => self.0.copy(out.tensor, x),
        }
    }

    /// The gradient of a weight or a bias [C]: the column sums of [N, C].
    fn put_column_sums(&self, out: Option<Destination>, x: &Tensor) -> Result<()> {
        out.map_or(Ok(()), |out| self.put(out, &self.sum(x, 0)?.view(&[x.dim(1)])?))
    }

    /// What a norm reads, in the accumulator's type; with a residual its sum is written.
    fn input(&self, x: &Tensor, residual: Option<Residual>) -> Result<Tensor> {
        let Some(Residual { addend, sum }) = residual else { return self.wide(x) };
        self.0.binary(Destination::write(sum), Binary::Add, x, addend)?;
        self.wide(sum)
    }
}

pub(super) fn rms_norm(cuda: &Cuda, args: &rms_norm::Forward) -> Result<()> {
    let &rms_norm::Forward { out, rstd, x, residual, weight, eps } = args;
    let on = Composer(cuda);
    let x = on.input(x, residual)?;
    let scale = on.rstd(&x, eps)?;
    cuda.copy(&rstd.unsqueeze(1)?, &scale)?;
    cuda.copy(out, &on.mul(&on.mul(&x, &scale)?, &on.wide(weight)?)?)
}

pub(super) fn rms_norm_backward(cuda: &Cuda, args: &rms_norm::Backward) -> Result<()> {
    let &rms_norm::Backward { d_x, d_weight, d_out, x, weight, rstd } = args;
    let (on, rstd) = (Composer(cuda), rstd.unsqueeze(1)?);
    let (d_out, normal) = (on.wide(d_out)?, on.mul(&on.wide(x)?, &rstd)?);
    if let Some(d_x) = d_x {
        let g = on.mul(&d_out, &on.wide(weight)?)?;
        let along = on.mul(&normal, &on.mean(&on.mul(&g, &normal)?, 0.0)?)?;
        on.put(d_x, &on.mul(&on.sub(&g, &along)?, &rstd)?)?;
    }
    on.put_column_sums(d_weight, &on.mul(&d_out, &normal)?)
}

pub(super) fn layer_norm(cuda: &Cuda, args: &layer_norm::Forward) -> Result<()> {
    let &layer_norm::Forward { out, mean, rstd, x, residual, weight, bias, eps } = args;
    let on = Composer(cuda);
    let x = on.input(x, residual)?;
    let middle = on.mean(&x, 0.0)?;
    let centred = on.sub(&x, &middle)?;
    let scale = on.rstd(&centred, eps)?;
    cuda.copy(&mean.unsqueeze(1)?, &middle)?;
    cuda.copy(&rstd.unsqueeze(1)?, &scale)?;
    let scaled = on.mul(&on.mul(&centred, &scale)?, &on.wide(weight)?)?;
    cuda.copy(out, &on.binary(Binary::Add, &scaled, &on.wide(bias)?)?)
}

pub(super) fn layer_norm_backward(cuda: &Cuda, args: &layer_norm::Backward) -> Result<()> {
    let &layer_norm::Backward { d_x, d_weight, d_bias, d_out, x, weight, mean, rstd } = args;
    let (on, rstd) = (Composer(cuda), rstd.unsqueeze(1)?);
    let d_out = on.wide(d_out)?;
    let normal = on.mul(&on.sub(&on.wide(x)?, &mean.unsqueeze(1)?)?, &rstd)?;
    if let Some(d_x) = d_x {
        let g = on.mul(&d_out, &on.wide(weight)?)?;
        let along = on.mul(&normal, &on.mean(&on.mul(&g, &normal)?, 0.0)?)?;
        let rest = on.sub(&on.sub(&g, &on.mean(&g, 0.0)?)?, &along)?;
        on.put(d_x, &on.mul(&rest, &rstd)?)?;
    }
    on.put_column_sums(d_weight, &on.mul(&d_out, &normal)?)?;
    on.put_column_sums(d_bias, &d_out)
}

/// The step's constants in f64, everything else in the type of the parameters.
pub(super) fn adamw(cuda: &Cuda, args: &AdamW) -> Result<()> {
    let &AdamW { parameters: p, gradients, first_moment: m, second_moment: v, clip, beta1, beta2, eps, .. } = args;
    if let Some(Rounding::Stochastic { .. }) = args.rounded.map(|rounded| rounded.rounding) {
        return Err(backend(cuda, "adamw: the chosen kernel composed does not round stochastically, which fused does"));
    }
    let on = Composer(cuda);
    let affine = |x: &Tensor, mul: f64, add: f64| on.unary(Unary::Affine { mul, add }, x);
    let (lr, step) = (on.converted(args.learning_rate, DType::F64)?, on.converted(args.step, DType::F64)?);
    // 1 - beta^t, beta^t being e^(t ln beta).
    let correction = |beta: f64| affine(&on.unary(Unary::Exp, &affine(&step, beta.ln(), 0.0)?)?, -1.0, 1.0);
    let rate = on.converted(&on.binary(Binary::Div, &lr, &correction(beta1)?)?, p.dtype())?;
    let root = on.converted(&on.unary(Unary::Sqrt, &correction(beta2)?)?, p.dtype())?;
    let decay = on.converted(&affine(&lr, args.weight_decay, 0.0)?, p.dtype())?;

    let g = on.mul(gradients, clip)?;
    for (moment, beta, term) in [(m, beta1, &g), (v, beta2, &on.mul(&g, &g)?)] {
        let (kept, new) = (affine(moment, beta, 0.0)?, affine(term, 1.0 - beta, 0.0)?);
        cuda.binary(Destination::write(moment), Binary::Add, &kept, &new)?;
    }
    let decaying = p.narrow(0, 0, args.decay_len)?;
    cuda.binary(Destination::write(&decaying), Binary::Sub, &decaying, &on.mul(&decaying, &decay)?)?;
    let size = affine(&on.binary(Binary::Div, &on.unary(Unary::Sqrt, v)?, &root)?, 1.0, eps)?;
    let change = on.binary(Binary::Div, &on.mul(m, &rate)?, &size)?;
    cuda.binary(Destination::write(p), Binary::Sub, p, &change)?;
    args.rounded.map_or(Ok(()), |rounded| cuda.copy(rounded.tensor, p))
}
