//! Recomputation: the same bits as the plain pass, less memory, captured parameters, refusals.

use crate::inputs::{device, normal};
use patchgpt_autograd::{
    Context, Error, Function, Gradients, Result, Saved, Var, apply, no_grad, recompute, recompute_cheap,
};
use patchgpt_tensor::{DType, MemoryModel, Meta, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Clone)]
struct Block {
    norm: Var,
    up: Var,
    down: Var,
}

impl Block {
    fn new(seed: u64) -> Block {
        let p = |shape: &[usize], i| Var::parameter(normal(shape, 10 * seed + i).cast(DType::F32).unwrap());
        Block { norm: p(&[8], 0), up: p(&[24, 8], 1), down: p(&[8, 12], 2) }
    }

    fn forward(&self, x: &Var) -> Result<Var> {
        let h = x.rms_norm(&self.norm, 1e-5)?.linear(&self.up, None)?.swiglu()?;
        x.add(&h.linear(&self.down, None)?)
    }

    fn gradients(&self) -> Vec<Vec<f32>> {
        [&self.norm, &self.up, &self.down].map(|p| p.gradient().unwrap().to_vec().unwrap()).to_vec()
    }
}

/// Loss and gradients of two blocks around a skip connection, with a recomputation rule for a block.
fn run(rule: impl Fn(&Block, &Var) -> Result<Var>) -> (f64, Vec<Vec<f32>>) {
    let blocks = [Block::new(1), Block::new(2)];
    let x = Var::parameter(normal(&[5, 8], 3).cast(DType::F32).unwrap());
    let a = rule(&blocks[0], &x).unwrap();
    let b = rule(&blocks[1], &a).unwrap();
    // The first block again, and its output once more: gradients meet from several sides.
    let c = rule(&blocks[0], &b).unwrap().add(&a).unwrap().mul(&x).unwrap();
    let loss = c.square().unwrap().sum_all().unwrap();
    loss.backward().unwrap();
    let mut gradients: Vec<Vec<f32>> = blocks.iter().flat_map(Block::gradients).collect();
    gradients.push(x.gradient().unwrap().to_vec().unwrap());
    (loss.item().unwrap(), gradients)
}

#[test]
fn same_bits_as_the_plain_pass() {
    let plain = run(|block, x| block.forward(x));
    let once = |block: &Block, x: &Var| {
        let block = block.clone();
        recompute(move |v| block.forward(&v[0]), &[x])
    };
    let nested = move |block: &Block, x: &Var| {
        let block = block.clone();
        recompute(move |v| once(&block, &v[0]), &[x])
    };
    let captured = |block: &Block, x: &Var| {
        let (block, x) = (block.clone(), x.clone());
        recompute(move |_| block.forward(&x), &[])
    };
    assert_eq!(run(once), plain);
    assert_eq!(run(nested), plain);
    assert_eq!(run(captured), plain);
    let cheap = |block: &Block, x: &Var| recompute_cheap(|| block.forward(x));
    assert_eq!(run(cheap), plain);
    let within = |block: &Block, x: &Var| {
        let block = block.clone();
        recompute(move |v| recompute_cheap(|| block.forward(&v[0])), &[x])
    };
    assert_eq!(run(within), plain);
}

/// Bytes that live tensors hold between forward and backward of `op`, which is given a device without elements.
fn held(op: impl Fn(&Var) -> Result<Var>) -> usize {
    let meta = Meta::new(MemoryModel { allocation: |bytes| bytes, ..MemoryModel::cpu() });
    let x = Var::parameter(Tensor::zeros(&[64, 32], DType::F32, &meta.device()).unwrap());
    let y = op(&x).unwrap();
    let held = meta.memory_held();
    y.backward_with(y.tensor(), false).unwrap();
    held
}

#[test]
fn outputs_of_cheap_ops_are_not_held() {
    let weight = |x: &Var, shape: &[usize]| Var::parameter(Tensor::zeros(shape, DType::F32, x.device()).unwrap());
    // The output of gelu, [64, 96], is what `linear` saves; then that of a chain, of which all links go.
    let one = |x: &Var| x.linear(&weight(x, &[96, 32]), None)?.gelu()?.linear(&weight(x, &[32, 96]), None);
    assert_eq!(held(one) - held(|x| recompute_cheap(|| one(x))), 4 * 64 * 96);
    // The same where one call has made the sum and its gelu.
    let fused = |x: &Var| x.linear_gelu(&weight(x, &[96, 32]), None)?.linear(&weight(x, &[32, 96]), None);
    assert_eq!(held(fused), held(one));
    assert_eq!(held(|x| recompute_cheap(|| fused(x))), held(|x| recompute_cheap(|| one(x))));
    let chain = |x: &Var| x.gelu()?.gelu()?.gelu()?.linear(&weight(x, &[8, 32]), None);
    assert_eq!(held(chain) - held(|x| recompute_cheap(|| chain(x))), 3 * 4 * 64 * 32);
    // A chain without end is cut.
    let long = |x: &Var| (0..100_000).try_fold(x.clone(), |x, _| x.gelu());
    assert!(held(|x| recompute_cheap(|| long(x))) < held(long) / 4);
}

#[test]
fn what_was_made_ahead_is_made_again() {
    let run = |rule: fn(&dyn Fn() -> Result<Var>) -> Result<Var>| {
        let p = |shape: &[usize], seed| Var::parameter(normal(shape, seed).cast(DType::F32).unwrap());
        let (x, up, down) = (p(&[5, 8], 1), p(&[24, 8], 2), p(&[8, 24], 3));
        let y = rule(&|| x.linear_gelu(&up, None)?.linear(&down, None)).unwrap();
        y.square().unwrap().sum_all().unwrap().backward().unwrap();
        [x, up, down].map(|v| v.gradient().unwrap().to_vec::<f32>().unwrap())
    };
    assert_eq!(run(|f| recompute_cheap(f)), run(|f| f()));
}

#[test]
fn what_a_cheap_op_is_made_again_from_must_not_change() {
    let x = normal(&[4, 8], 1).cast(DType::F32).unwrap();
    let weight = Var::parameter(normal(&[3, 8], 2).cast(DType::F32).unwrap());
    let constant = Var::constant(x.clone());
    let y = recompute_cheap(|| constant.gelu().unwrap().linear(&weight, None)).unwrap();
    x.fill_(1.0).unwrap();
    // Nothing is made again of an untracked value: gelu's output was kept.
    y.sum_all().unwrap().backward().unwrap();
    let x = Var::parameter(normal(&[4, 8], 1).cast(DType::F32).unwrap());
    let y = recompute_cheap(|| x.gelu().unwrap().linear(&weight, None)).unwrap();
    x.tensor().fill_(1.0).unwrap();
    let error = y.sum_all().unwrap().backward().unwrap_err();
    assert!(matches!(error, Error::Changed { .. }) && error.to_string().contains("gelu"), "{error}");
}

/// Counts how often it runs.
struct Count(Arc<AtomicUsize>);

impl Function for Count {
    fn name(&self) -> &'static str {
        "count"
    }
    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        assert!(
            self.0.fetch_add(1, Ordering::Relaxed) > 0 || !context.needs_any_gradient(),
            "a rehearsal saves nothing"
        );
        context.save(inputs[0]);
        Ok(vec![inputs[0].copy()?])
    }
    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        d_inputs.add(0, saved.d_out(d_outputs)?.clone())
    }
}

#[test]
fn runs_again_once_a_backward() {
    let runs = Arc::new(AtomicUsize::new(0));
    let x = Var::parameter(normal(&[3], 1));
    let counter = runs.clone();
    let f = move |v: &[Var]| Ok(apply(Count(counter.clone()), &[&v[0]])?.remove(0));
    let loss = recompute(f, &[&x]).unwrap().sum_all().unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    let one = Tensor::scalar(1.0, DType::F64, &device()).unwrap();
    loss.backward_with(&one, true).unwrap();
    loss.backward_with(&one, false).unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 3);
    assert_eq!(x.gradient().unwrap().to_vec::<f64>().unwrap(), [2.0; 3]);
    assert!(matches!(loss.backward(), Err(Error::Released { .. })));
}

/// Between the passes only the inputs are held.
#[test]
fn saves_its_inputs_only() {
    let inner = Var::constant(normal(&[3], 2));
    let held = inner.tensor().clone();
    let x = Var::parameter(normal(&[3], 1));
    let plain = x.mul(&inner).unwrap();
    let before = Arc::strong_count(held.buffer());
    drop(plain);
    assert_eq!(Arc::strong_count(held.buffer()), before - 1, "the product saves its factor");
    let intermediate = Arc::new(std::sync::Mutex::new(None));
    let slot = intermediate.clone();
    let y = recompute(
        move |v| {
            let h = v[0].exp()?;
            *slot.lock().unwrap() = Some(Arc::downgrade(h.tensor().buffer()));
            h.square()
        },
        &[&x],
    )
    .unwrap();
    assert!(intermediate.lock().unwrap().as_ref().unwrap().upgrade().is_none(), "gone after the forward pass");
    assert!(y.is_tracked());
}

#[test]
fn untracked_functions_are_not_recorded() {
    let x = Var::constant(normal(&[3], 1));
    assert!(!recompute(|v| v[0].square(), &[&x]).unwrap().is_tracked());
    let p = Var::parameter(normal(&[3], 1));
    assert!(!no_grad(|| recompute(|v| v[0].square(), &[&p])).unwrap().is_tracked());
    // The input itself, or a parameter, comes back as it is.
    let same = recompute(|v| Ok(v[0].clone()), &[&p]).unwrap();
    same.sum_all().unwrap().backward().unwrap();
    assert_eq!(p.gradient().unwrap().to_vec::<f64>().unwrap(), [1.0; 3]);
}

#[test]
fn changes_are_refused() {
    let (x, w) = (normal(&[2, 3], 1), normal(&[4, 3], 2));
    let run = |change: &Tensor| {
        let (x, weight) = (Var::parameter(x.clone()), Var::parameter(w.clone()));
        let y = recompute(move |v| v[0].linear(&weight, None), &[&x]).unwrap().sum_all().unwrap();
        change.fill_(1.0).unwrap();
        y.backward()
    };
    for changed in [&x, &w] {
        assert!(matches!(run(changed), Err(Error::Changed { op: "recompute", .. })));
    }
    let calls = AtomicUsize::new(0);
    let p = Var::parameter(normal(&[3], 1));
    let fickle = move |v: &[Var]| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => v[0].square(),
        _ => v[0].narrow(0, 0, 1),
    };
    let message = recompute(fickle, &[&p]).unwrap().sum_all().unwrap().backward().unwrap_err().to_string();
    assert!(message.contains("same thing"), "{message}");
}

/// A value that leaves the function by another way than its result has no gradient, and says so.
#[test]
fn values_from_inside_cannot_be_differentiated() {
    let p = Var::parameter(normal(&[3], 1));
    let stolen = Arc::new(std::sync::Mutex::new(None));
    let slot = stolen.clone();
    let f = move |v: &[Var]| {
        let h = v[0].exp()?;
        *slot.lock().unwrap() = Some(h.clone());
        h.square()
    };
    recompute(f, &[&p]).unwrap();
    let h = stolen.lock().unwrap().take().unwrap();
    let message = h.sum_all().unwrap().backward().unwrap_err().to_string();
    assert!(message.contains("recomputed function"), "{message}");
}
