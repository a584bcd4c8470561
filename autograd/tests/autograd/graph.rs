//! The graph and its walk: accumulation, ownership of gradients, versions, release, errors, depth.

use crate::inputs::{device, normal};
use patchgpt_autograd::{Context, Error, Function, Gradients, Result, Saved, Var, apply, is_recording, no_grad};
use patchgpt_tensor::{DType, Tensor, Unary};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn values(x: &Tensor) -> Vec<f64> {
    x.to_f64_vec().unwrap()
}

fn gradient(x: &Var) -> Vec<f64> {
    values(&x.gradient().expect("a gradient"))
}

fn vector(data: &[f64]) -> Tensor {
    Tensor::from_slice(data, &[data.len()], &device()).unwrap()
}

#[test]
fn gradients_accumulate_over_passes() {
    let x = Var::parameter(vector(&[1.0, 2.0]));
    assert!(x.gradient().is_none());
    for n in 1..=3 {
        x.square().unwrap().sum_all().unwrap().backward().unwrap();
        assert_eq!(gradient(&x), [2.0 * n as f64, 4.0 * n as f64]);
    }
    let kept = x.gradient().unwrap();
    x.zero_gradient().unwrap();
    assert_eq!(gradient(&x), [0.0, 0.0]);
    assert_eq!(values(&kept), [6.0, 12.0], "a gradient that someone holds is not changed");
    x.square().unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(gradient(&x), [2.0, 4.0]);
}

/// A residual stream: d_out flows to both branches without a copy, and adding to one must not change the other.
#[test]
fn shared_gradients_are_not_written() {
    let x = Var::parameter(vector(&[1.0, 2.0]));
    let y = Var::parameter(vector(&[3.0, 5.0]));
    let sum = x.add(&y).unwrap();
    // x and y share d_out; then x gets more, from ops recorded before the sum and after it.
    let loss = sum.sum_all().unwrap().add(&x.square().unwrap().sum_all().unwrap()).unwrap();
    let loss = loss.add(&sum.mul(&x.exp().unwrap()).unwrap().sum_all().unwrap()).unwrap();
    loss.backward().unwrap();
    let e = [1f64.exp(), 2f64.exp()];
    let close = |a: Vec<f64>, b: [f64; 2]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
    assert!(close(gradient(&x), [1.0 + 2.0 + e[0] + 4.0 * e[0], 1.0 + 4.0 + e[1] + 7.0 * e[1]]));
    assert!(close(gradient(&y), [1.0 + e[0], 1.0 + e[1]]));
    let (gx, gy) = (x.gradient().unwrap(), y.gradient().unwrap());
    assert!(!Arc::ptr_eq(gx.buffer(), gy.buffer()));
}

/// Parameters never share gradient memory with each other or with what was given to backward.
#[test]
fn parameters_own_their_gradients() {
    let (x, y) = (Var::parameter(vector(&[1.0, 2.0])), Var::parameter(vector(&[3.0, 4.0])));
    let d_out = vector(&[1.0, 1.0]);
    x.add(&y).unwrap().backward_with(&d_out, false).unwrap();
    let (gx, gy) = (x.gradient().unwrap(), y.gradient().unwrap());
    gx.fill_(7.0).unwrap();
    assert_eq!((values(&gy), values(&d_out)), (vec![1.0, 1.0], vec![1.0, 1.0]));
    drop(gx);
    // A gradient that is a broadcast view becomes memory of its own.
    let z = Var::parameter(vector(&[1.0, 2.0, 3.0]));
    z.sum_all().unwrap().backward().unwrap();
    assert!(z.gradient().unwrap().is_contiguous());
    assert_eq!(z.gradient().unwrap().buffer().len(), 3);
    // A parameter alone is its own output.
    let w = Var::parameter(vector(&[1.0]));
    let d_out = vector(&[2.0]);
    w.backward_with(&d_out, false).unwrap();
    w.backward_with(&d_out, false).unwrap();
    assert_eq!((gradient(&w), values(&d_out)), (vec![4.0], vec![2.0]));
}

/// Gradients land in views of one flat buffer, added to what is there.
#[test]
fn gradients_in_flat_storage() {
    let flat = Tensor::zeros(&[40], DType::F64, &device()).unwrap();
    let place =
        |start: usize, shape: &[usize]| flat.narrow(0, start, shape.iter().product()).unwrap().view(shape).unwrap();
    let (w, b, n) = (normal(&[3, 4], 1), normal(&[3], 2), normal(&[3], 3));
    let parameter = |t: &Tensor, start| Var::parameter_with_gradient(t.clone(), place(start, t.shape())).unwrap();
    let (fw, fb, fn_) = (parameter(&w, 0), parameter(&b, 16), parameter(&n, 24));
    let (pw, pb, pn) = (Var::parameter(w.clone()), Var::parameter(b.clone()), Var::parameter(n.clone()));
    let x = Var::constant(normal(&[5, 4], 4));
    let loss = |w: &Var, b: &Var, n: &Var| -> Result<Var> {
        // The weight twice, as a tied head has it, and the bias both inside the layer and after it.
        let h = x.linear(w, Some(b))?.rms_norm(n, 1e-5)?.add(b)?;
        h.matmul(w)?.sub(&x)?.square()?.sum_all()
    };
    for pass in 1..=2 {
        loss(&fw, &fb, &fn_).unwrap().backward().unwrap();
        loss(&pw, &pb, &pn).unwrap().backward().unwrap();
        for (given, own) in [(&fw, &pw), (&fb, &pb), (&fn_, &pn)] {
            assert!(Arc::ptr_eq(given.gradient().unwrap().buffer(), flat.buffer()), "pass {pass}");
            let own = own.gradient().unwrap();
            let size = values(&own).iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            assert!(given.gradient().unwrap().max_abs_diff(&own).unwrap() <= 1e-12 * size);
        }
    }
    // The gaps stay zero.
    let all = values(&flat);
    assert!([&all[12..16], &all[19..24], &all[27..]].iter().all(|gap| gap.iter().all(|&v| v == 0.0)));
    fw.zero_gradient().unwrap();
    assert!(values(&flat)[..12].iter().all(|&v| v == 0.0) && values(&flat)[16..19].iter().any(|&v| v != 0.0));
}

/// Given gradients may be strided, and of the accumulator's dtype.
#[test]
fn given_gradients_of_other_forms() {
    let flat = Tensor::zeros(&[3, 2], DType::F64, &device()).unwrap();
    let x = Var::parameter_with_gradient(normal(&[2, 3], 1), flat.t().unwrap()).unwrap();
    x.square().unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(gradient(&x), values(&x.tensor().affine(2.0, 0.0).unwrap()));
    let wrong = Tensor::zeros(&[3], DType::F64, &device()).unwrap();
    assert!(Var::parameter_with_gradient(normal(&[2, 3], 1), wrong).is_err());
    let wrong = Tensor::zeros(&[2, 3], DType::F32, &device()).unwrap();
    assert!(Var::parameter_with_gradient(normal(&[2, 3], 1), wrong).is_err());
    let repeated = Tensor::zeros(&[1, 3], DType::F64, &device()).unwrap().broadcast_to(&[2, 3]).unwrap();
    assert!(Var::parameter_with_gradient(normal(&[2, 3], 1), repeated).is_err());
}

#[test]
fn changed_tensors_are_refused() {
    let w = normal(&[2, 3], 1);
    let weight = Var::parameter(w.clone());
    let x = Var::parameter(normal(&[4, 3], 2));
    let y = x.linear(&weight, None).unwrap().sum_all().unwrap();
    w.fill_(0.0).unwrap();
    let message = y.backward().unwrap_err().to_string();
    for part in ["linear", "saved tensor 1", "input 1", "[2, 3]", "written in place"] {
        assert!(message.contains(part), "{message}");
    }
    // Through a view of the same memory, and for a saved output.
    let flat = normal(&[6], 3);
    let part = Var::parameter(flat.narrow(0, 0, 3).unwrap());
    let y = part.exp().unwrap();
    let loss = y.square().unwrap().sum_all().unwrap();
    y.tensor().fill_(1.0).unwrap();
    assert!(matches!(loss.backward(), Err(Error::Changed { op: "square", .. })));
    let loss = part.square().unwrap().sum_all().unwrap();
    flat.narrow(0, 4, 1).unwrap().fill_(1.0).unwrap();
    assert!(matches!(loss.backward(), Err(Error::Changed { op: "square", .. })));
    // A sum saves nothing, so nothing can go stale.
    let loss = part.add(&part).unwrap().sum_all().unwrap();
    flat.fill_(2.0).unwrap();
    loss.backward().unwrap();
}

#[test]
fn the_graph_is_freed_unless_kept() {
    let x = Var::parameter(vector(&[3.0]));
    let one = Tensor::scalar(1.0, DType::F64, &device()).unwrap();
    let y = x.square().unwrap();
    let loss = y.exp().unwrap().sum_all().unwrap();
    loss.backward_with(&one, true).unwrap();
    loss.backward_with(&one, false).unwrap();
    let expected = 2.0 * 6.0 * 9f64.exp();
    assert!((gradient(&x)[0] / expected - 1.0).abs() < 1e-14);
    let error = loss.backward().unwrap_err();
    assert!(matches!(error, Error::Released { op: "sum_all" }) && error.to_string().contains("keep_graph"), "{error}");
    // A part that an earlier pass has used up.
    assert!(matches!(y.add(&y).unwrap().sum_all().unwrap().backward(), Err(Error::Released { op: "square" })));
}

/// Saved tensors go as the walk passes, not at its end.
#[test]
fn saved_tensors_are_freed_as_they_are_used() {
    /// Passes its input on; in backward, notes how many others still hold the tensor that a later op saved.
    struct Watch(Tensor, Arc<AtomicUsize>);
    impl Function for Watch {
        fn name(&self) -> &'static str {
            "watch"
        }
        fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
            Ok(vec![inputs[0].copy()?])
        }
        fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
            self.1.store(Arc::strong_count(self.0.buffer()), Ordering::Relaxed);
            d_inputs.add(0, saved.d_out(d_outputs)?.clone())
        }
    }
    let (held, seen) = (normal(&[3], 1), Arc::new(AtomicUsize::new(0)));
    let x = Var::parameter(normal(&[3], 2));
    let watched = apply(Watch(held.clone(), seen.clone()), &[&x]).unwrap().remove(0);
    let loss = watched.mul(&Var::constant(held.clone())).unwrap().sum_all().unwrap();
    assert_eq!(Arc::strong_count(held.buffer()), 3, "here, in the watch, saved by the product");
    loss.backward().unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 2, "the product has let go before the watch runs");
    assert_eq!(Arc::strong_count(held.buffer()), 1);
}

/// A saved output does not keep its graph alive.
#[test]
fn saved_outputs_do_not_leak() {
    let x = normal(&[4], 1);
    {
        let p = Var::parameter(x.clone());
        let y = p.exp().unwrap().softmax().unwrap().square().unwrap();
        assert!(Arc::strong_count(x.buffer()) > 1 && y.is_tracked());
    }
    assert_eq!(Arc::strong_count(x.buffer()), 1);
}

#[test]
fn a_hundred_thousand_ops_deep() {
    let x = Var::parameter(vector(&[1.0]));
    let deep = || {
        let mut y = x.clone();
        for _ in 0..100_000 {
            y = y.affine(-1.0, 0.0).unwrap();
        }
        y
    };
    let y = deep();
    y.sum_all().unwrap().backward().unwrap();
    assert_eq!(gradient(&x), [1.0]);
    drop(deep());
    // And freed on a thread with a small stack.
    let y = deep();
    std::thread::Builder::new().stack_size(64 << 10).spawn(move || drop(y)).unwrap().join().unwrap();
}

#[test]
fn untracked_values_have_no_backward() {
    let x = Var::parameter(vector(&[1.0, 2.0]));
    assert!(matches!(Var::constant(vector(&[1.0])).sum_all().unwrap().backward(), Err(Error::Untracked)));
    assert!(matches!(x.detach().sum_all().unwrap().backward(), Err(Error::Untracked)));
    assert!(matches!(x.square().unwrap().backward(), Err(Error::NotScalar { .. })));
    let y = x.square().unwrap();
    assert!(y.backward_with(&vector(&[1.0]), false).is_err());
    assert!(y.backward_with(&vector(&[1.0, 1.0]).cast(DType::F32).unwrap(), false).is_err());
    assert!(y.gradient().is_none() && y.zero_gradient().is_err());
    assert!(x.gradient().is_none(), "nothing has flowed");
}

#[test]
fn no_grad_is_a_state_of_the_thread() {
    let x = Var::parameter(vector(&[1.0]));
    let tracked = no_grad(|| {
        assert!(!is_recording());
        std::thread::scope(|s| s.spawn(|| is_recording() && x.square().unwrap().is_tracked()).join().unwrap())
    });
    assert!(tracked && is_recording());
    assert!(std::panic::catch_unwind(|| no_grad(|| panic!("as a test"))).is_err());
    assert!(is_recording(), "restored when a panic unwinds");
    let inside = no_grad(|| no_grad(|| x.square()).unwrap().is_tracked());
    assert!(!inside);
    // Backward may run under no_grad.
    let y = x.square().unwrap().sum_all().unwrap();
    no_grad(|| y.backward()).unwrap();
    assert_eq!(gradient(&x), [2.0]);
}

/// An op with two outputs, without a backward if `differentiable` is not.
struct Split {
    differentiable: bool,
    late: bool,
}

impl Function for Split {
    fn name(&self) -> &'static str {
        "split"
    }
    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].unary(Unary::Neg)?, inputs[0].affine(3.0, 0.0)?])
    }
    fn backward(&self, _: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        if self.late {
            return Err(Error::NoBackward { op: self.name() });
        }
        if let Some(d) = &d_outputs[0] {
            d_inputs.add(0, d.unary(Unary::Neg)?)?;
        }
        if let Some(d) = &d_outputs[1] {
            d_inputs.add(0, d.affine(3.0, 0.0)?)?;
        }
        Ok(())
    }
    fn is_differentiable(&self) -> bool {
        self.differentiable
    }
}

/// Its first input; the second has no influence.
struct First;

impl Function for First {
    fn name(&self) -> &'static str {
        "first"
    }
    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].copy()?])
    }
    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        d_inputs.add(0, saved.d_out(d_outputs)?.clone())?;
        d_inputs.zero(1)
    }
}

#[test]
fn zero_gradients_are_declared() {
    let (x, y, z) = (Var::parameter(vector(&[1.0])), Var::parameter(vector(&[2.0])), Var::parameter(vector(&[3.0])));
    let first = |a: &Var, b: &Var| apply(First, &[a, b]).unwrap().remove(0);
    let loss = first(&x, &y).add(&first(&z.square().unwrap(), &z)).unwrap().sum_all().unwrap();
    loss.backward().unwrap();
    assert_eq!((gradient(&x), gradient(&y), gradient(&z)), (vec![1.0], vec![0.0], vec![6.0]));
}

/// What the default body of `Function::backward` says.
struct Forward;

impl Function for Forward {
    fn name(&self) -> &'static str {
        "forward only"
    }
    fn forward(&self, inputs: &[&Tensor], _: &mut Context) -> Result<Vec<Tensor>> {
        Ok(vec![inputs[0].copy()?])
    }
}

#[test]
fn functions_with_several_outputs() {
    let split = || Split { differentiable: true, late: false };
    let x = Var::parameter(vector(&[1.0, 2.0]));
    let [a, b] = <[Var; 2]>::try_from(apply(split(), &[&x]).unwrap()).unwrap();
    a.mul(&b).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(gradient(&x), [-6.0, -12.0]);
    x.zero_gradient().unwrap();
    let b = apply(split(), &[&x]).unwrap().remove(1);
    b.sum_all().unwrap().backward().unwrap();
    assert_eq!(gradient(&x), [3.0, 3.0]);
}

#[test]
fn ops_without_backward_are_errors() {
    let (x, c) = (Var::parameter(vector(&[1.0])), Var::constant(vector(&[1.0])));
    let early = |x: &Var| apply(Split { differentiable: false, late: false }, &[x]);
    assert!(matches!(early(&x), Err(Error::NoBackward { op: "split" })));
    assert!(early(&c).is_ok() && no_grad(|| early(&x)).is_ok());
    let y = apply(Split { differentiable: true, late: true }, &[&x]).unwrap().remove(0);
    assert!(matches!(y.sum_all().unwrap().backward(), Err(Error::NoBackward { op: "split" })));
    let y = apply(Forward, &[&x]).unwrap().remove(0);
    assert!(matches!(y.sum_all().unwrap().backward(), Err(Error::NoBackward { op: "forward only" })));
    let ids = Var::parameter(Tensor::from_slice(&[1i32], &[1], &device()).unwrap());
    assert!(matches!(apply(Forward, &[&ids]), Err(Error::NotFloat { .. })));
}

/// The same program gives the same bits.
#[test]
fn gradients_are_deterministic() {
    let run = || {
        let p: Vec<Var> = (0..3).map(|i| Var::parameter(normal(&[8, 8], i).cast(DType::F32).unwrap())).collect();
        let h = p[0].matmul(&p[1]).unwrap().add(&p[2]).unwrap().gelu().unwrap();
        let y = h.add(&p[0]).unwrap().matmul(&p[2]).unwrap().add(&h).unwrap().softmax().unwrap();
        y.mul(&p[1]).unwrap().sum_all().unwrap().backward().unwrap();
        p.iter().map(|p| p.gradient().unwrap().to_vec::<f32>().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}
