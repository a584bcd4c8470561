//! Sums over every choice of dimensions, and means; maxima, which have no gradient here.

use patchgpt_tensor::{Destination, Reduction, Tensor};

use super::{Case, Check, Direct, FLOATS, inputs, mistake};
use crate::array::{Array, Placement};
use crate::reference::reduce as reference;

pub(super) fn sum(shape: &[usize], dims: &[usize]) -> Case {
    let inputs = inputs(&[shape]);
    let n = inputs[0].0.data.len();
    let kept: usize = (0..shape.len()).filter(|d| !dims.contains(d)).map(|d| shape[d]).product();
    let (d, e, f) = (dims.to_vec(), dims.to_vec(), dims.to_vec());
    Case {
        op: "reduce",
        name: format!("sum of {shape:?} over {dims:?}"),
        inputs,
        run: Box::new(move |x| x[0].sum(&d)),
        forward: Box::new(move |x| reference::sum(&x[0], &e)),
        backward: Box::new(move |x, g| reference::sum_backward(&x[0], &f, g)),
        reduction: n,
        flops: n as f64,
        traffic: (n + kept) as f64,
        check: Check::default(),
    }
}

fn mean(shape: &[usize], dims: &[usize]) -> Case {
    let count: usize = dims.iter().map(|&d| shape[d]).product();
    let scale = 1.0 / count as f64;
    let (d, e, f, g) = (dims.to_vec(), dims.to_vec(), dims.to_vec(), dims.to_vec());
    let undivided = mistake("a sum in the place of the mean", move |x| x[0].sum(&g));
    let scaled = move |mut a: Array| {
        a.data.iter_mut().for_each(|x| *x *= scale);
        a
    };
    Case {
        name: format!("mean of {shape:?} over {dims:?}"),
        run: Box::new(move |x| x[0].mean(&d)),
        forward: Box::new(move |x| scaled(reference::sum(&x[0], &e))),
        backward: Box::new(move |x, g| reference::sum_backward(&x[0], &f, g).into_iter().map(scaled).collect()),
        check: Check { mistakes: vec![undivided], ..Check::default() },
        ..sum(shape, dims)
    }
}

/// The sum of all elements, 0-d.
fn sum_all(shape: &[usize]) -> Case {
    let dims: Vec<usize> = (0..shape.len()).collect();
    let flat = move |mut a: Array| {
        a.shape.clear();
        a
    };
    let all = dims.clone();
    Case {
        name: format!("sum of all of {shape:?}"),
        run: Box::new(|x| x[0].sum_all()),
        forward: Box::new(move |x| flat(reference::sum(&x[0], &all))),
        backward: Box::new(|x, g| vec![Array::from_fn(&x[0].shape, |_| g.data[0])]),
        ..sum(shape, &dims)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let table: [(&[usize], &[usize]); 12] = [
        (&[7], &[0]),
        (&[1], &[0]),
        (&[5, 33], &[1]),
        (&[5, 33], &[0]),
        (&[5, 33], &[0, 1]),
        (&[2, 3, 4, 5], &[1, 3]),
        (&[2, 3, 4, 5], &[0, 2]),
        (&[2, 3, 4, 5], &[1, 2]),
        (&[3, 4], &[]),
        (&[0, 4], &[0]),
        (&[4, 0], &[0]),
        (&[130, 70], &[0]),
    ];
    let mut cases: Vec<Case> = table.iter().map(|(s, d)| sum(s, d)).collect();
    cases.extend([mean(&[5, 33], &[1]), mean(&[2, 3, 4], &[0, 2])]);
    for placement in [Placement::Transposed, Placement::Sliced, Placement::Repeated] {
        cases.push(sum(&[6, 11], &[0]).placed(&[placement]));
        cases.push(sum(&[6, 11], &[1]).placed(&[placement]));
        cases.push(sum_all(&[6, 11]).placed(&[placement]));
    }
    cases.extend([sum_all(&[]), sum_all(&[1]), sum_all(&[5, 33]), sum_all(&[0, 3])]);
    cases
}

pub(super) fn large() -> Vec<Case> {
    vec![sum(&[100, 100], &[0]), mean(&[100, 100], &[1]), sum_all(&[100, 100]), sum_all(&[2, 70_001])]
}

/// A maximum over `dims`, with a NaN among the elements if `nan`.
fn max(shape: &[usize], dims: &[usize], placement: Placement, nan: bool) -> Direct {
    let mut x = Array::random(shape, 1.0, 8);
    if let (true, Some(first)) = (nan, x.data.first_mut()) {
        *first = f64::NAN;
    }
    let (n, before) = (x.data.len() as f64, x.clone());
    let (d, e) = (dims.to_vec(), dims.to_vec());
    Direct {
        op: "reduce",
        name: format!("max of {shape:?} over {dims:?} {placement:?}{}", if nan { " with NaN" } else { "" }),
        dtypes: &FLOATS,
        run: Box::new(move |dtype, device| Ok(vec![placement.place(&x, dtype, device)?.max(&d)?])),
        expected: Box::new(move |dtype| vec![reference::max(&placement.values(&before.rounded(dtype)), &e)]),
        reduction: None,
        flops: n,
        traffic: n,
    }
}

/// A sum over the rows added to what is there.
fn added(shape: [usize; 2], placement: Placement) -> Direct {
    let (x, start) = (Array::random(&shape, 1.0, 9), Array::random(&[1, shape[1]], 1.0, 10));
    let (x1, before) = (x.clone(), start.clone());
    Direct {
        op: "reduce",
        name: format!("sum of {shape:?} over [0] {placement:?}, added to what is there"),
        dtypes: &FLOATS,
        run: Box::new(move |dtype, device| {
            let out = Tensor::from_slice(&start.data, &start.shape, device)?.cast(dtype)?;
            placement.place(&x, dtype, device)?.reduce_into(Reduction::Sum, Destination::add(&out))?;
            Ok(vec![out])
        }),
        expected: Box::new(move |dtype| {
            let sum = reference::sum(&placement.values(&x1.rounded(dtype)), &[0]);
            let before = before.rounded(dtype);
            vec![Array::from_fn(&before.shape, |i| before.data[i] + sum.data[i])]
        }),
        reduction: Some(shape[0]),
        flops: (shape[0] * shape[1]) as f64,
        traffic: (shape[0] * shape[1]) as f64,
    }
}

pub(super) fn direct() -> Vec<Direct> {
    let mut cases = Vec::new();
    for placement in Placement::ALL {
        for (shape, dims) in
            [(&[5, 33][..], &[1][..]), (&[5, 33], &[0]), (&[0, 3], &[0]), (&[2, 3, 4], &[0, 2]), (&[67], &[0])]
        {
            cases.extend([false, true].map(|nan| max(shape, dims, placement, nan)));
        }
        cases.push(added([19, 7], placement));
    }
    cases
}
