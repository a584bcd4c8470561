//! Properties over random shapes, layouts and parameters: every op against its reference, and chains of views against index arithmetic.
//! The draws are the same on every run; `PROPTEST_CASES=5000` makes more of them.

use std::collections::BTreeSet;

use patchgpt_tensor::{DType, Device, Tensor};
use patchgpt_tests::array::{Array, Placement};
use patchgpt_tests::cases;
use patchgpt_tests::conformance::check;
use patchgpt_tests::reference::{broadcast_to, narrow, permute, reshape};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

fn runner(cases: u32) -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn placement() -> impl Strategy<Value = Placement> {
    proptest::sample::select(&Placement::ALL[..])
}

/// Mostly small sizes, some beyond a vector or a tile.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0usize..8, 3 => 8usize..36, 1 => 60usize..70]
}

#[test]
fn ops_agree_with_their_references() {
    let device = Device::cpu_with_threads(2).unwrap();
    let ops: BTreeSet<&str> = cases::all().iter().map(|case| case.op).collect();
    for op in ops {
        let sizes = [size(), size(), size(), size(), size()];
        let strategy = (sizes, 0usize..1024, [placement(), placement(), placement()], any::<bool>());
        let result = runner(60).run(&strategy, |(sizes, choice, placements, double)| {
            // Products of five sizes beyond a few hundred thousand only take time.
            prop_assume!(sizes.iter().map(|size| size.max(&1)).product::<usize>() < 300_000);
            let dtype = if double { DType::F64 } else { DType::F32 };
            let case = cases::sized(op, sizes, choice, placements);
            let case = case.ok_or_else(|| TestCaseError::fail(format!("{op} has no sizes to choose")))?;
            check(&case, dtype, &device).map_err(|e| TestCaseError::fail(format!("{} in {dtype}: {e}", case.label())))
        });
        if let Err(error) = result {
            panic!("{op}: {error}");
        }
    }
}

/// One step of a chain of views.
#[derive(Clone, Debug)]
enum Step {
    /// Dimensions rotated by this much.
    Permute(usize),
    /// A slice of a dimension, from and length as shares of it.
    Narrow(usize, usize, usize),
    /// A new leading dimension of this size, or a dimension of size 1 repeated.
    Broadcast(usize),
    /// All elements in one dimension.
    Flatten,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0usize..4).prop_map(Step::Permute),
        (0usize..4, 0usize..6, 0usize..6).prop_map(|(dim, start, length)| Step::Narrow(dim, start, length)),
        (1usize..4).prop_map(Step::Broadcast),
        Just(Step::Flatten),
    ]
}

/// The step on both sides; a step that the shape does not allow does nothing.
fn walk(x: &Array, t: &Tensor, step: &Step) -> patchgpt_tensor::Result<(Array, Tensor)> {
    let rank = x.shape.len();
    Ok(match *step {
        Step::Permute(by) if rank > 0 => {
            let order: Vec<usize> = (0..rank).map(|i| (i + by) % rank).collect();
            (permute::forward(x, &order), t.permute(&order)?)
        }
        Step::Narrow(dim, start, length) if rank > 0 => {
            let dim = dim % rank;
            let start = start.min(x.shape[dim]);
            let length = length.min(x.shape[dim] - start);
            (narrow::forward(x, dim, start, length), t.narrow(dim, start, length)?)
        }
        Step::Broadcast(size) if rank < 4 => {
            let mut shape = vec![size];
            shape.extend(x.shape.iter().map(|&d| if d == 1 { size } else { d }));
            (broadcast_to::forward(x, &shape), t.broadcast_to(&shape)?)
        }
        Step::Flatten => {
            let shape = [x.data.len()];
            (reshape::forward(x, &shape), t.reshape(&shape)?)
        }
        _ => (x.clone(), t.clone()),
    })
}

#[test]
fn chains_of_views_are_index_arithmetic() {
    let device = Device::cpu_with_threads(1).unwrap();
    let shape = proptest::collection::vec(0usize..6, 0..4);
    let strategy = (shape, proptest::collection::vec(step(), 0..7), placement());
    let result = runner(600).run(&strategy, |(shape, steps, placement)| {
        let x = Array::random(&shape, 1.0, 5);
        let mut tensor = placement.place(&x, DType::F64, &device).unwrap();
        let mut array = placement.values(&x);
        for step in &steps {
            prop_assume!(array.data.len() < 5000);
            (array, tensor) = walk(&array, &tensor, step).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert_eq!(&Array::of(&tensor).unwrap(), &array);
        }
        // A view is also written through: what was not in it stays.
        if !tensor.layout().may_overlap_itself() {
            tensor.fill_(7.0).unwrap();
            prop_assert!(tensor.to_f64_vec().unwrap().iter().all(|&v| v == 7.0));
        }
        prop_assert_eq!(tensor.copy().unwrap().to_f64_vec().unwrap(), tensor.to_f64_vec().unwrap());
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// Recomputed, accumulated in two passes or in one, a chain has the same gradient.
#[test]
fn gradients_do_not_depend_on_how_a_graph_is_walked() {
    use patchgpt_autograd::{Result, Var, recompute};
    let device = Device::cpu_with_threads(2).unwrap();
    let strategy = (1usize..20, 1usize..20, 1usize..20, proptest::collection::vec(0usize..5, 1..6));
    let result = runner(80).run(&strategy, |(n, c, m, ops)| {
        let tensor = |shape: &[usize], seed| {
            let x = Array::random(shape, 1.0, seed);
            Tensor::from_slice(&x.data, shape, &device).unwrap()
        };
        let (x, w, g) = (tensor(&[n, c], 1), tensor(&[c, c], 2), tensor(&[m, c], 3));
        let chain = move |x: &Var, w: &Var| -> Result<Var> {
            let mut y = x.clone();
            for op in &ops {
                y = match op {
                    0 => y.linear(w, None)?,
                    1 => y.tanh()?.add(x)?,
                    2 => y.softmax()?,
                    3 => y.mul(x)?,
                    _ => y.gelu()?.narrow(1, 0, c)?,
                };
            }
            Ok(y)
        };
        let gradients = |again: bool, passes: usize| {
            let (px, pw) = (Var::parameter(x.clone()), Var::parameter(w.clone()));
            for pass in 0..passes {
                let y = if again {
                    let chain = chain.clone();
                    recompute(move |v: &[Var]| chain(&v[0], &v[1]), &[&px, &pw]).unwrap()
                } else {
                    chain(&px, &pw).unwrap()
                };
                let y = y.linear(&Var::constant(g.clone()), None).unwrap();
                y.affine((pass + 1) as f64, 0.0).unwrap().sum_all().unwrap().backward().unwrap();
            }
            [px, pw].map(|p| p.gradient().map_or(vec![], |g| g.to_f64_vec().unwrap()))
        };
        let once = gradients(false, 1);
        prop_assert_eq!(&once, &gradients(true, 1));
        for (once, twice) in once.iter().zip(&gradients(false, 2)) {
            let largest = once.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            prop_assert!(once.iter().zip(twice).all(|(a, b)| (3.0 * a - b).abs() <= 1e-12 * largest));
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
