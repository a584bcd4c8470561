use std::collections::BTreeSet;

use super::*;
use crate::backend::{AdamW, Binary, Destination, PRIMITIVES, Reduction, Unary};
use crate::cpu::Cpu;
use crate::{DType, ScatterIndex, Tensor};

fn open() -> Result<(Arc<Profiler>, Device)> {
    let profiler = Profiler::around(&Device::cpu_with_threads(1)?);
    let device = profiler.device();
    Ok((profiler, device))
}

/// Every primitive and every backward, each once, from tensors of ones.
fn everything(device: &Device) -> Result<()> {
    let ones = |shape: &[usize]| Tensor::full(shape, 1.0, DType::F32, device);
    let (x, row, out) = (ones(&[4, 8])?, ones(&[8])?, ones(&[4, 8])?);
    let to = Destination::write(&out);
    x.copy()?;
    Tensor::random(&[3], crate::Distribution::Uniform { low: 0.0, high: 1.0 }, 1, 0, DType::F32, device)?;
    x.unary(Unary::Exp)?;
    x.binary(Binary::Add, &x)?;
    x.reduce(Reduction::Sum, &[0])?;
    x.matmul(&x.t()?)?;
    x.linear(&x, None)?;
    x.softmax()?.softmax_backward(&x, to)?;
    let ids = [0, 1, 2, 1];
    x.patch_embedding(&Tensor::from_slice(&ids, &[2, 2], device)?)?;
    ones(&[2, 8])?.patch_embedding_backward(&ScatterIndex::new(&ids, 4, device)?, 2, to)?;
    let norm = x.rms_norm(&row, 1e-5)?;
    x.rms_norm_backward(&row, &norm.rstd, &x, Some(to), None)?;
    let norm = x.layer_norm(&row, &row, 1e-5)?;
    x.layer_norm_backward(&row, &norm.mean, &norm.rstd, &x, [Some(to), None, None])?;
    let heads = ones(&[1, 4, 2, 4])?;
    let (cos, sin) = Tensor::rope_table(0, 4, 4, 1e4, DType::F32, device)?;
    heads.rope(&cos, &sin, false)?;
    let attended = heads.causal_attention(&heads, &heads, 0.5)?;
    let gradients = [ones(&[1, 4, 2, 4])?, ones(&[1, 4, 2, 4])?, ones(&[1, 4, 2, 4])?];
    let gradients = gradients.each_ref().map(Destination::write);
    heads.causal_attention_backward(&heads, &heads, &attended, 0.5, &heads, gradients)?;
    x.gelu()?;
    x.gelu_backward(&x, to)?;
    x.swiglu()?;
    x.swiglu_backward(&ones(&[4, 4])?, to)?;
    let (targets, weights) = (Tensor::from_slice(&[1; 4], &[4, 1], device)?, ones(&[1])?);
    let loss = x.cross_entropy(&targets, &weights)?;
    x.cross_entropy_backward(&loss.lse, &targets, &weights, &ones(&[4])?, to)?;
    x.linear_cross_entropy(&x, &targets, &weights, &ones(&[])?, Some(to), None)?;
    let state = [ones(&[5])?, ones(&[5])?, ones(&[5])?, ones(&[5])?];
    let (_, clip) = state[1].global_norm(1.0)?;
    AdamW {
        parameters: &state[0],
        gradients: &state[1],
        first_moment: &state[2],
        second_moment: &state[3],
        learning_rate: &ones(&[])?,
        clip: &clip,
        step: &Tensor::from_slice(&[1], &[], device)?,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        decay_len: 5,
        rounded: None,
    }
    .run()
}

#[test]
fn every_primitive_is_written_down_under_its_name() -> Result<()> {
    let (profiler, device) = open()?;
    everything(&device)?;
    let calls = profiler.take();
    let names: BTreeSet<&str> = calls.iter().map(|call| call.op).collect();
    let with_backward =
        ["softmax", "patch_embedding", "rms_norm", "layer_norm", "causal_attention", "gelu", "swiglu", "cross_entropy"];
    for primitive in PRIMITIVES {
        assert!(names.contains(primitive), "{primitive} is not among {names:?}");
    }
    for op in with_backward {
        assert!(names.contains(&*format!("{op}_backward")), "{op}_backward is not among {names:?}");
    }
    assert!(names.contains("upload"));
    for call in &calls {
        assert!(call.bytes > 0.0 && call.flops >= 0.0 && !call.shapes.is_empty(), "{call:?}");
    }
    assert!(calls.windows(2).all(|pair| pair[0].start + pair[0].elapsed <= pair[1].start), "calls follow each other");
    assert!(profiler.take().is_empty());
    Ok(())
}

#[test]
fn work_is_counted_from_shapes() -> Result<()> {
    let (profiler, device) = open()?;
    let a = Tensor::zeros(&[3, 5], DType::F32, &device)?;
    let b = Tensor::zeros(&[5, 7], DType::F32, &device)?;
    let out = Tensor::zeros(&[3, 7], DType::F32, &device)?;
    profiler.take();
    a.matmul_into(&b, 1.0, Destination::add(&out))?;
    a.add(&Tensor::zeros(&[5], DType::F32, &device)?)?;
    let q = Tensor::zeros(&[2, 4, 3, 8], DType::F64, &device)?;
    q.causal_attention(&q, &q, 1.0)?;
    let calls = profiler.take();
    let work = |op: &str| calls.iter().find(|call| call.op == op).map(|call| (call.flops, call.bytes));
    assert_eq!(work("matmul"), Some((2.0 * 105.0, 4.0 * (15.0 + 35.0 + 2.0 * 21.0))));
    assert_eq!(work("binary"), Some((15.0, 4.0 * (15.0 + 15.0 + 5.0))), "a broadcast row is read once");
    // 1 + 2 + 3 + 4 scores of each of 2 x 3 heads of size 8, two products.
    assert_eq!(work("causal_attention"), Some((4.0 * 10.0 * 6.0 * 8.0, 8.0 * (4.0 * 192.0 + 24.0))));
    Ok(())
}

#[test]
fn a_composed_primitive_is_one_call() -> Result<()> {
    let (profiler, device) = open()?;
    let x = Tensor::full(&[6, 4], 0.1, DType::F32, &device)?;
    let weights = Tensor::full(&[1], 1.0, DType::F32, &device)?;
    let targets = Tensor::from_slice(&[1i32; 6], &[6, 1], &device)?;
    profiler.take();
    x.linear_cross_entropy(&x, &targets, &weights, &Tensor::scalar(1.0, DType::F32, &device)?, None, None)?;
    let calls = profiler.take();
    assert_eq!(calls.iter().map(|call| call.op).collect::<Vec<_>>(), ["fill", "linear_cross_entropy"]);
    assert_eq!(calls[1].flops, 36.0 * (2.0 * 4.0 + 4.0));
    Ok(())
}

#[test]
fn results_are_the_same_and_the_backend_is_still_reached() -> Result<()> {
    let (profiler, device) = open()?;
    assert!(device.downcast::<Cpu>().is_some() && device.downcast::<Profiler>().is_some());
    assert_eq!(device.to_string(), profiler.measured().to_string());
    assert!(device != *profiler.measured());
    let product = |device: &Device| {
        let x =
            Tensor::random(&[17, 9], crate::Distribution::Normal { mean: 0.0, std: 1.0 }, 5, 0, DType::F32, device)?;
        x.matmul(&x.t()?)?.softmax()?.to_vec::<f32>()
    };
    assert_eq!(product(&device)?, product(profiler.measured())?);
    let moved = Tensor::zeros(&[2], DType::F32, profiler.measured())?;
    assert!(Tensor::zeros(&[2], DType::F32, &device)?.add(&moved).is_err(), "tensors of two devices do not mix");
    Ok(())
}

#[test]
fn a_refused_call_is_not_written_down() -> Result<()> {
    let (profiler, device) = open()?;
    let x = Tensor::zeros(&[4], DType::I32, &device)?;
    profiler.take();
    assert!(device.backend().unary(&x, Unary::Exp, &x).is_err());
    assert!(profiler.take().is_empty());
    x.fill_(1.0)?;
    assert_eq!(profiler.take().len(), 1, "the next call is an outermost one again");
    Ok(())
}
