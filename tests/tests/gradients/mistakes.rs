//! Negative controls: for each op, backwards that are wrong in every way that has been seen, all of which the checker must reject.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use patchgpt_autograd::Result;
use patchgpt_autograd::gradcheck::{Report, Verdict, gradcheck};
use patchgpt_tensor::Tensor;
use patchgpt_tests::array::Placement;
use patchgpt_tests::cases::{self, Case};

use crate::cases::{device, inputs};
use crate::spoiled::{Mistake, change, gradients, spoiled};

const EVERYWHERE: [Mistake; 6] = [
    Mistake::DroppedFactor,
    Mistake::Slightly(1e-5),
    Mistake::Slightly(-1e-5),
    Mistake::Transposed,
    Mistake::OffByOne,
    Mistake::MissingAccumulation,
];

/// Checks a case whose backward makes a mistake with input `i`.
fn check(case: &Arc<Case>, i: usize, mistake: Mistake) -> Result<Report> {
    gradcheck(spoiled(case, i, mistake), &inputs(case, &device()), &case.options())
}

/// The right gradients of a case.
fn right(case: &Case, tensors: &[Tensor]) -> Vec<Tensor> {
    named(case, tensors, Mistake::None)
}

fn named(case: &Case, tensors: &[Tensor], mistake: Mistake) -> Vec<Tensor> {
    let vars: Vec<_> = tensors.iter().cloned().map(patchgpt_autograd::Var::constant).collect();
    let shape = (case.run)(&vars).unwrap().shape().to_vec();
    let d_y = Placement::Contiguous.place(
        &patchgpt_tests::array::Array::random(&shape, 1.0, 3),
        tensors[0].dtype(),
        &device(),
    );
    gradients(case, tensors, &d_y.unwrap(), mistake).unwrap()
}

/// Whether a mistake changes nothing worth the name: a transposed symmetric gradient, one of zero, one of a single element.
fn is_harmless(right: &Tensor, wrong: &Tensor) -> bool {
    let size = |x: &Tensor| x.to_vec::<f64>().unwrap().iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    size(right) == 0.0 || right.max_abs_diff(wrong).unwrap() <= 1e-6 * size(right)
}

/// Cases that are cheap and whose gradients have elements to be mistaken about.
fn suitable() -> Vec<Arc<Case>> {
    let fits = |case: &Case| {
        let n = case.inputs[0].0.data.len();
        let contiguous = case.inputs.iter().all(|(_, placement)| *placement == Placement::Contiguous);
        (2..=200).contains(&n) && contiguous && !case.check.has_infinities && case.options().zero_inputs.is_empty()
    };
    cases::all().into_iter().filter(fits).map(Arc::new).collect()
}

#[test]
fn the_wrapper_itself_passes() {
    for case in suitable() {
        for i in 0..case.inputs.len() {
            let report = check(&case, i, Mistake::None).unwrap_or_else(|e| panic!("{}: {e}", case.label()));
            assert_eq!(report.verdict(), Verdict::Passed, "{}: {report}", case.label());
        }
    }
}

#[test]
fn every_mistake_in_every_op_is_rejected() {
    let mut rejected: BTreeMap<(&str, String), usize> = BTreeMap::new();
    let mut accepted = Vec::new();
    for case in suitable() {
        let tensors = inputs(&case, &device());
        let gradients = right(&case, &tensors);
        for (i, gradient) in gradients.iter().enumerate().filter(|(_, g)| !g.is_empty()) {
            for mistake in EVERYWHERE {
                let visible = matches!(mistake, Mistake::MissingAccumulation | Mistake::Slightly(_))
                    || !is_harmless(gradient, &change(gradient, mistake).unwrap());
                if !visible || is_harmless(gradient, &gradient.affine(2.0, 0.0).unwrap()) {
                    continue;
                }
                let report = check(&case, i, mistake).unwrap();
                if report.verdict() == Verdict::Failed {
                    *rejected.entry((case.op, format!("{mistake:?}"))).or_default() += 1;
                } else {
                    accepted.push(format!("{} with {mistake:?} of input {i}: {report}", case.label()));
                }
            }
        }
    }
    assert!(accepted.is_empty(), "{} mistakes accepted:\n{}", accepted.len(), accepted.join("\n"));
    let ops: BTreeSet<&str> = cases::all().iter().map(|case| case.op).collect();
    for op in ops {
        for mistake in EVERYWHERE {
            let count = rejected.get(&(op, format!("{mistake:?}"))).copied().unwrap_or(0);
            assert!(count > 0, "{op} was never tried with {mistake:?}");
        }
    }
}

/// The mistakes that belong to an op: targets off by one, repeated targets counted once, factors of the formula left out.
#[test]
fn the_mistakes_of_each_op_are_rejected() {
    let mut rejected: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut known = BTreeSet::new();
    for case in suitable() {
        known.extend(case.check.mistakes.iter().map(|(name, _)| (case.op, *name)));
        let tensors = inputs(&case, &device());
        let expected = right(&case, &tensors);
        for (n, (name, _)) in case.check.mistakes.iter().enumerate() {
            let wrong = named(&case, &tensors, Mistake::Named(n));
            for i in (0..tensors.len()).filter(|&i| !is_harmless(&expected[i], &wrong[i])) {
                let report = check(&case, i, Mistake::Named(n)).unwrap();
                assert_eq!(report.verdict(), Verdict::Failed, "{} with {name}: {report}", case.label());
                *rejected.entry((case.op, *name)).or_default() += 1;
            }
        }
    }
    for (op, name) in &known {
        assert!(rejected.contains_key(&(*op, *name)), "{op} was never tried with {name}");
    }
    for (op, name) in [
        ("cross_entropy", "targets off by one"),
        ("cross_entropy", "repeated targets counted once"),
        ("linear_cross_entropy", "targets off by one"),
        ("patch_embedding", "ids off by one"),
        ("causal_attention", "a scale that was dropped"),
    ] {
        assert!(known.contains(&(op, name)), "{op} lost {name}");
    }
}

/// One wrong element among ten thousand fails, and is named with its two values.
#[test]
fn one_wrong_element_in_ten_thousand_is_found() {
    let mut ops = BTreeSet::new();
    for case in cases::large().into_iter().map(Arc::new) {
        let tensors = inputs(&case, &device());
        let gradient = right(&case, &tensors).swap_remove(0).to_vec::<f64>().unwrap();
        let largest = gradient.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        // An element in the middle, as large as many.
        let ordinary = |&i: &usize| gradient[i].abs() > 0.05 * largest;
        let element = (gradient.len() / 2..gradient.len()).find(ordinary).expect("an ordinary element");
        for mistake in [Mistake::OneElement(element), Mistake::NotANumber(element)] {
            let report = check(&case, 0, mistake).unwrap();
            assert_eq!(report.verdict(), Verdict::Failed, "{} with {mistake:?}: {report}", case.label());
            let worst = report.inputs[0].worst.as_ref().unwrap();
            let index = case.inputs[0].0.index(element);
            assert_eq!(worst.index.as_ref(), Some(&index), "{}: {report}", case.label());
            assert!(report.to_string().contains(&format!("{index:?}")), "{report}");
            assert!(worst.step > 0.0 && worst.numeric.is_finite());
        }
        ops.insert(case.op);
    }
    assert_eq!(ops.len(), cases::all().iter().map(|case| case.op).collect::<BTreeSet<_>>().len());
}
