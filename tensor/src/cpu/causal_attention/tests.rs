use crate::backend::Destination;
use crate::{Device, Element, Tensor};

/// Sizes of a case: batch, query positions, key positions, query heads, key heads, head size.
#[derive(Clone, Copy, Debug)]
struct Case {
    b: usize,
    t: usize,
    s: usize,
    h: usize,
    g: usize,
    d: usize,
}

/// Odd lengths, blocks that end early, grouped heads, more keys than queries, a single query, head sizes off the vectors, two chunks of queries
/// that are too little work for threads.
const CASES: [Case; 10] = [
    Case { b: 1, t: 1, s: 1, h: 1, g: 1, d: 1 },
    Case { b: 2, t: 7, s: 7, h: 2, g: 1, d: 6 },
    Case { b: 1, t: 65, s: 65, h: 1, g: 1, d: 64 },
    Case { b: 1, t: 130, s: 130, h: 4, g: 2, d: 16 },
    Case { b: 2, t: 64, s: 200, h: 3, g: 3, d: 80 },
    Case { b: 3, t: 1, s: 300, h: 4, g: 2, d: 64 },
    Case { b: 1, t: 4, s: 5, h: 6, g: 2, d: 33 },
    Case { b: 1, t: 5, s: 70, h: 2, g: 1, d: 128 },
    Case { b: 8, t: 33, s: 40, h: 2, g: 2, d: 24 },
    Case { b: 1, t: 134, s: 139, h: 1, g: 1, d: 1 },
];

/// Positions of a row that the ops must neither read nor write.
const GAP: usize = 3;

fn values(len: usize, seed: usize) -> Vec<f64> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.5 - 1.0).collect()
}

struct Expected {
    out: Vec<f64>,
    lse: Vec<f64>,
    d_q: Vec<f64>,
    d_k: Vec<f64>,
    d_v: Vec<f64>,
}

const SCALE: f64 = 0.7;

/// The formulas, index by index.
fn expected(c: Case, q: &[f64], k: &[f64], v: &[f64], d_out: &[f64]) -> Expected {
    let zeros = |len: usize| vec![0.0; len];
    let mut e = Expected {
        out: zeros(q.len()),
        lse: zeros(c.b * c.h * c.t),
        d_q: zeros(q.len()),
        d_k: zeros(k.len()),
        d_v: zeros(v.len()),
    };
    let at_q = |b: usize, t: usize, h: usize| ((b * c.t + t) * c.h + h) * c.d;
    let at_k = |b: usize, s: usize, h: usize| ((b * c.s + s) * c.g + h / (c.h / c.g)) * c.d;
    let dot = |x: &[f64], y: &[f64]| (0..c.d).map(|i| x[i] * y[i]).sum::<f64>();
    for (b, h, t) in (0..c.b * c.h * c.t).map(|i| (i / (c.h * c.t), i / c.t % c.h, i % c.t)) {
        let (query, seen) = (at_q(b, t, h), t + 1 + c.s - c.t);
        let scores: Vec<f64> = (0..seen).map(|s| SCALE * dot(&q[query..], &k[at_k(b, s, h)..])).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
        e.lse[(b * c.h + h) * c.t + t] = lse;
        let p: Vec<f64> = scores.iter().map(|s| (s - lse).exp()).collect();
        let d_p: Vec<f64> = (0..seen).map(|s| dot(&d_out[query..], &v[at_k(b, s, h)..])).collect();
        let delta: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d).sum();
        for s in 0..seen {
            let (key, d_score) = (at_k(b, s, h), SCALE * p[s] * (d_p[s] - delta));
            for i in 0..c.d {
                e.out[query + i] += p[s] * v[key + i];
                e.d_v[key + i] += p[s] * d_out[query + i];
                e.d_q[query + i] += d_score * k[key + i];
                e.d_k[key + i] += d_score * q[query + i];
            }
        }
    }
    e
}

/// A view [b, t, h, d] with gaps between the heads, which hold infinity.
fn gapped<E: Element>(data: &[f64], [b, t, h, d]: [usize; 4], of: fn(f64) -> E, device: &Device) -> Tensor {
    let mut wide = vec![of(f64::INFINITY); b * t * h * (d + GAP)];
    for (to, from) in wide.chunks_mut(d + GAP).zip(data.chunks(d)) {
        to.iter_mut().zip(from).for_each(|(to, x)| *to = of(*x));
    }
    Tensor::from_slice(&wide, &[b, t, h, d + GAP], device).and_then(|x| x.narrow(3, 0, d)).expect("a view")
}

/// The elements of a view with gaps; asserts that nobody wrote into those.
fn read<E: Element + Into<f64>>(view: &Tensor) -> Vec<f64> {
    let pitch = view.dim(3) + GAP;
    let whole = view.with_layout(crate::Layout::contiguous(&[view.len() / view.dim(3), pitch]).expect("a layout"));
    let wide: Vec<f64> = whole.to_vec::<E>().expect("the dtype").into_iter().map(Into::into).collect();
    assert!(wide.chunks(pitch).all(|row| row[view.dim(3)..].iter().all(|x| *x == f64::INFINITY)), "gaps stay");
    wide.chunks(pitch).flat_map(|row| &row[..view.dim(3)]).copied().collect()
}

fn close(what: &str, case: Case, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * (1.0 + want.abs()), "{what}[{i}] of {case:?}: {got}, not {want}");
    }
}

/// Runs forward and backward (added to `start`, or written) and gives [out, lse, d_q, d_k, d_v].
fn run<E: Element + Into<f64>>(c: Case, of: fn(f64) -> E, threads: usize, start: Option<f64>) -> [Vec<f64>; 5] {
    let device = Device::cpu_with_threads(threads).expect("a device");
    let (shape_q, shape_k) = ([c.b, c.t, c.h, c.d], [c.b, c.s, c.g, c.d]);
    let (len_q, len_k): (usize, usize) = (shape_q.iter().product(), shape_k.iter().product());
    let view = |data: &[f64], shape| gapped(data, shape, of, &device);
    let (q, d_out) = (view(&values(len_q, 1), shape_q), view(&values(len_q, 4), shape_q));
    let (k, v) = (view(&values(len_k, 2), shape_k), view(&values(len_k, 3), shape_k));
    let out = view(&vec![f64::NAN; len_q], shape_q);
    let lse = Tensor::from_slice(&vec![of(f64::NAN); c.b * c.h * c.t], &[c.b, c.h, c.t], &device).expect("a tensor");
    device.backend().causal_attention(&out, &lse, &q, &k, &v, SCALE).expect("forward");
    let first = start.unwrap_or(f64::NAN);
    let (d_q, d_k, d_v) =
        (view(&vec![first; len_q], shape_q), view(&vec![first; len_k], shape_k), view(&vec![first; len_k], shape_k));
    let [to_q, to_k, to_v] = [&d_q, &d_k, &d_v].map(|tensor| Destination { tensor, accumulate: start.is_some() });
    let backend = device.backend();
    backend.causal_attention_backward(to_q, to_k, to_v, &d_out, &q, &k, &v, &out, &lse, SCALE).expect("backward");
    let lse = lse.to_vec::<E>().expect("the dtype").into_iter().map(Into::into).collect();
    [read::<E>(&out), lse, read::<E>(&d_q), read::<E>(&d_k), read::<E>(&d_v)]
}

#[test]
fn forward_and_backward_are_the_formula() {
    for case in CASES {
        let (len_q, len_k) = (case.b * case.t * case.h * case.d, case.b * case.s * case.g * case.d);
        let [q, d_out] = [1, 4].map(|seed| values(len_q, seed));
        let [k, v] = [2, 3].map(|seed| values(len_k, seed));
        let want = expected(case, &q, &k, &v, &d_out);
        let want = [want.out, want.lse, want.d_q, want.d_k, want.d_v];
        for start in [None, Some(2.5)] {
            let exact = run::<f64>(case, |x| x, 2, start);
            let single = run::<f32>(case, |x| x as f32, 2, start);
            for (i, what) in ["out", "lse", "d_q", "d_k", "d_v"].into_iter().enumerate() {
                let added = if i >= 2 { start.unwrap_or(0.0) } else { 0.0 };
                let want: Vec<f64> = want[i].iter().map(|x| x + added).collect();
                close(what, case, &exact[i], &want, 1e-11);
                close(what, case, &single[i], &want, 2e-5);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    // One that is cut into chunks of queries and one that is not.
    for case in [Case { b: 1, t: 300, s: 310, h: 4, g: 2, d: 32 }, Case { b: 5, t: 90, s: 90, h: 2, g: 2, d: 16 }] {
        let results = [1, 2, 3, 7].map(|threads| run::<f32>(case, |x| x as f32, threads, None));
        for (got, want) in results.iter().flatten().zip(results[0].iter().cycle()) {
            assert!(got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()), "threads change bits of {case:?}");
        }
    }
}

#[test]
fn large_scores_and_nan() {
    let device = Device::cpu_with_threads(2).expect("a device");
    let (t, d) = (100, 8);
    let mut q: Vec<f32> = values(t * d, 1).iter().map(|x| *x as f32 * 300.0).collect();
    q[70 * d] = f32::NAN;
    let shape = [1, t, 1, d];
    let q = Tensor::from_slice(&q, &shape, &device).expect("a tensor");
    let out = Tensor::from_slice(&vec![0f32; t * d], &shape, &device).expect("a tensor");
    let k: Vec<f32> = values(t * d, 2).iter().map(|x| *x as f32 * 30.0).collect();
    let k = Tensor::from_slice(&k, &shape, &device).expect("a tensor");
    let lse = Tensor::from_slice(&vec![0f32; t], &[1, 1, t], &device).expect("a tensor");
    device.backend().causal_attention(&out, &lse, &q, &k, &k, 1.0).expect("forward");
    for (row, x) in out.to_vec::<f32>().expect("f32").chunks(d).enumerate() {
        assert!(x.iter().all(|x| if row == 70 { x.is_nan() } else { x.abs() <= 30.0 }), "row {row}: {x:?}");
    }
    for (row, x) in lse.to_vec::<f32>().expect("f32").into_iter().enumerate() {
        assert!(if row == 70 { x.is_nan() } else { x.is_finite() }, "row {row}: {x}");
    }
}

#[test]
fn a_nan_stays_in_its_block_of_queries() {
    let device = Device::cpu_with_threads(2).expect("a device");
    // A block of queries and a few more in one task; query 7 sees none of the last keys.
    let c = Case { b: 8, t: 134, s: 134, h: 1, g: 1, d: 8 };
    let shape = [c.b, c.t, c.h, c.d];
    let tensor = |data: &[f64]| Tensor::from_slice(data, &shape, &device).expect("a tensor");
    let len = c.b * c.t * c.d;
    let mut d_out = values(len, 4);
    d_out[7 * c.d] = f64::NAN;
    let [q, k, v] = [1, 2, 3].map(|seed| tensor(&values(len, seed)));
    let forward = q.causal_attention(&k, &v, SCALE).expect("forward");
    let gradients = [&q, &k, &v].map(|like| like.copy().expect("a tensor"));
    let to = [0, 1, 2].map(|i| Destination::write(&gradients[i]));
    q.causal_attention_backward(&k, &v, &forward, SCALE, &tensor(&d_out), to).expect("backward");
    for (i, gradient) in gradients.iter().enumerate() {
        let values = gradient.to_vec::<f64>().expect("f64");
        assert!(values[128 * c.d..].iter().all(|x| x.is_finite()), "gradient {i}");
        assert!(values[7 * c.d..8 * c.d].iter().any(|x| x.is_nan()), "gradient {i}");
    }
}

#[test]
fn nothing_to_attend() {
    let device = Device::cpu_with_threads(2).expect("a device");
    let empty = |shape: &[usize]| Tensor::from_slice::<f32>(&[], shape, &device).expect("a tensor");
    // No queries: keys and values have gradients of zero.
    let (q, lse) = (empty(&[1, 0, 2, 3]), empty(&[1, 2, 0]));
    let [k, d_k, d_v] = [0, 1, 2].map(|_| Tensor::from_slice(&[1f32; 6], &[1, 2, 1, 3], &device).expect("a tensor"));
    let (out, d_q) = (empty(&[1, 0, 2, 3]), empty(&[1, 0, 2, 3]));
    let backend = device.backend();
    backend.causal_attention(&out, &lse, &q, &k, &k, 1.0).expect("nothing to do");
    let [a, b, c] = [&d_q, &d_k, &d_v].map(Destination::write);
    backend.causal_attention_backward(a, b, c, &q, &q, &k, &k, &out, &lse, 1.0).expect("zeros");
    assert_eq!(d_k.to_vec::<f32>().expect("f32"), [0.0; 6]);
    assert_eq!(d_v.to_vec::<f32>().expect("f32"), [0.0; 6]);
    // No batch.
    let (q, lse) = (empty(&[0, 5, 2, 3]), empty(&[0, 2, 5]));
    backend.causal_attention(&q, &lse, &empty(&[0, 5, 2, 3]), &q, &q, 1.0).expect("nothing to do");
}
