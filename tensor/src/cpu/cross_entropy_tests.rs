use crate::backend::Destination;
use crate::{Device, IGNORE_INDEX, Tensor};

const N: usize = 5;
const K: usize = 3;

/// Logits of very different size, deterministic.
fn logits(v: usize, spread: f64) -> Vec<f64> {
    (0..N * v).map(|i| ((i * 7919 % 1013) as f64 / 1013.0 - 0.5) * spread).collect()
}

/// Targets with repetitions, one row half ignored and one row wholly.
fn targets(v: usize) -> Vec<i32> {
    let mut targets: Vec<i32> = (0..N * K).map(|i| (i * 31 % v) as i32).collect();
    targets[1] = targets[0];
    targets[K + 2] = IGNORE_INDEX;
    targets[2 * K..3 * K].fill(IGNORE_INDEX);
    targets
}

const WEIGHTS: [f64; K] = [1.0, 0.5, 2.0];
const D_LOSSES: [f64; N] = [0.25, 1.0, f64::NAN, -2.0, 0.0];

struct Expected {
    losses: Vec<f64>,
    lse: Vec<f64>,
    d_logits: Vec<f64>,
}

/// The formulas, index by index.
fn expected(v: usize, logits: &[f64], targets: &[i32]) -> Expected {
    let mut want = Expected { losses: vec![0.0; N], lse: vec![0.0; N], d_logits: vec![0.0; N * v] };
    for n in 0..N {
        let row = &logits[n * v..(n + 1) * v];
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        want.lse[n] = top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
        for k in (0..K).filter(|k| targets[n * K + k] != IGNORE_INDEX) {
            let target = targets[n * K + k] as usize;
            want.losses[n] += WEIGHTS[k] * (want.lse[n] - row[target]);
            #[allow(clippy::needless_range_loop)]
            for (i, x) in row.iter().enumerate() {
                let one_hot = if i == target { 1.0 } else { 0.0 };
                want.d_logits[n * v + i] += D_LOSSES[n] * WEIGHTS[k] * ((x - want.lse[n]).exp() - one_hot);
            }
        }
    }
    want
}

fn close(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * (1.0 + want.abs()), "element {i}: {got}, expected {want}");
    }
}

/// Forward and backward through the contract; logits are columns of a wider matrix of which the rest must not be seen.
struct Case {
    device: Device,
    wide: Tensor,
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    lse: Tensor,
    losses: Tensor,
}

impl Case {
    fn new(v: usize, values: &[f64], threads: usize) -> Case {
        let device = Device::cpu_with_threads(threads).expect("a device");
        let pitch = v + 3;
        let mut padded = vec![f64::INFINITY; N * pitch];
        for (to, from) in padded.chunks_mut(pitch).zip(values.chunks(v)) {
            to[..v].copy_from_slice(from);
        }
        let wide = Tensor::from_slice(&padded, &[N, pitch], &device).expect("a tensor");
        let case = Case {
            logits: wide.narrow(1, 0, v).expect("a view"),
            wide,
            targets: Tensor::from_slice(&targets(v), &[N, K], &device).expect("a tensor"),
            weights: Tensor::from_slice(&WEIGHTS, &[K], &device).expect("a tensor"),
            lse: Tensor::from_slice(&[0.0; N], &[N], &device).expect("a tensor"),
            losses: Tensor::from_slice(&[0.0; N], &[N], &device).expect("a tensor"),
            device,
        };
        let backend = case.device.backend();
        backend.cross_entropy(&case.losses, &case.lse, &case.logits, &case.targets, &case.weights).expect("losses");
        case
    }

    fn backward(&self, d_logits: Destination) {
        let d_losses = Tensor::from_slice(&D_LOSSES, &[N], &self.device).expect("a tensor");
        let backend = self.device.backend();
        backend
            .cross_entropy_backward(d_logits, &d_losses, &self.logits, &self.lse, &self.targets, &self.weights)
            .expect("a gradient");
    }
}

#[test]
fn losses_and_gradients_are_the_formula() {
    for (v, spread) in [(1, 2.0), (7, 3.0), (33, 2e4), (256, 5.0), (9001, 40.0)] {
        let values = logits(v, spread);
        let want = expected(v, &values, &targets(v));
        for threads in [1, 3] {
            let case = Case::new(v, &values, threads);
            close(&case.losses.to_vec::<f64>().expect("f64"), &want.losses, 1e-12);
            close(&case.lse.to_vec::<f64>().expect("f64"), &want.lse, 1e-12);

            let d = Tensor::from_slice(&vec![f64::NAN; N * v], &[N, v], &case.device).expect("a tensor");
            case.backward(Destination::write(&d));
            close(&d.to_vec::<f64>().expect("f64"), &want.d_logits, 1e-12);

            let d = Tensor::from_slice(&vec![3.0; N * v], &[N, v], &case.device).expect("a tensor");
            case.backward(Destination::add(&d));
            let added: Vec<f64> = want.d_logits.iter().map(|d| d + 3.0).collect();
            close(&d.to_vec::<f64>().expect("f64"), &added, 1e-12);

            // In place, and nothing beside the view is touched.
            case.backward(Destination::write(&case.logits));
            let wide = case.wide.to_vec::<f64>().expect("f64");
            for (row, want) in wide.chunks(v + 3).zip(want.d_logits.chunks(v)) {
                close(&row[..v], want, 1e-12);
                assert!(row[v..].iter().all(|x| *x == f64::INFINITY));
            }
        }
    }
}

#[test]
fn infinite_logits_and_nan() {
    let v = 5000;
    let mut values = logits(v, 4.0);
    // The first chunk of row 0 is minus infinity throughout, and so is all of row 2, which has no valid target.
    values[..4600].fill(f64::NEG_INFINITY);
    values[2 * v..3 * v].fill(f64::NEG_INFINITY);
    values[3 * v + 4] = f64::NAN;
    let case = Case::new(v, &values, 2);
    let lse = case.lse.to_vec::<f64>().expect("f64");
    let want = values[4600..v].iter().map(|x| x.exp()).sum::<f64>().ln();
    assert!((lse[0] - want).abs() < 1e-12 && lse[1].is_finite(), "{lse:?}");
    assert!(lse[2] == f64::NEG_INFINITY && lse[3].is_nan() && lse[4].is_finite(), "{lse:?}");
    let losses = case.losses.to_vec::<f64>().expect("f64");
    assert!(losses[0] == f64::INFINITY && losses[2] == 0.0 && losses[3].is_nan(), "{losses:?}");
    case.backward(Destination::write(&case.logits));
    let d = case.wide.to_vec::<f64>().expect("f64");
    assert!(d[4..4600].iter().all(|x| x.is_finite()), "e^-inf is 0");
    assert!(d[2 * (v + 3)..2 * (v + 3) + v].iter().all(|x| *x == 0.0), "a row without a target has no gradient");
    assert!(d[3 * (v + 3)..3 * (v + 3) + v].iter().all(|x| x.is_nan()), "NaN is seen");
}

#[test]
fn f32_keeps_its_precision() {
    let (v, device) = (4096 + 17, Device::cpu_with_threads(2).expect("a device"));
    let values = logits(v, 60.0);
    let want = expected(v, &values, &targets(v));
    let rounded: Vec<f32> = values.iter().map(|x| *x as f32).collect();
    let logits = Tensor::from_slice(&rounded, &[N, v], &device).expect("a tensor");
    let targets = Tensor::from_slice(&targets(v), &[N, K], &device).expect("a tensor");
    let weights = Tensor::from_slice(&WEIGHTS.map(|w| w as f32), &[K], &device).expect("a tensor");
    let [losses, lse] = [0, 1].map(|_| Tensor::from_slice(&[0f32; N], &[N], &device).expect("a tensor"));
    device.backend().cross_entropy(&losses, &lse, &logits, &targets, &weights).expect("losses");
    let wide = |x: &Tensor| x.to_vec::<f32>().expect("f32").iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    close(&wide(&lse), &want.lse, 1e-6);
    close(&wide(&losses), &want.losses, 1e-5);
}

#[test]
fn nothing_to_do() {
    let device = Device::cpu_with_threads(2).expect("a device");
    let empty = |shape: &[usize]| Tensor::from_slice::<f32>(&[], shape, &device).expect("a tensor");
    let targets = Tensor::from_slice::<i32>(&[], &[0, 2], &device).expect("a tensor");
    let weights = Tensor::from_slice(&[1f32, 1.0], &[2], &device).expect("a tensor");
    let (losses, lse, logits) = (empty(&[0]), empty(&[0]), empty(&[0, 9]));
    device.backend().cross_entropy(&losses, &lse, &logits, &targets, &weights).expect("nothing to do");
    let d = Destination::write(&logits);
    device.backend().cross_entropy_backward(d, &losses, &logits, &lse, &targets, &weights).expect("nothing to do");
}
