use crate::backend::Destination;
use crate::{Device, ScatterIndex, Tensor};

/// Ids of a text: a few of them hold most positions, some of the `v` never occur.
fn ids(positions: usize, v: usize) -> Vec<i32> {
    let skewed = |i: usize| if !i.is_multiple_of(3) { 2 } else { i * 7919 % v / 2 * 2 };
    (0..positions).map(|i| skewed(i).min(v - 1) as i32).collect()
}

fn values(len: usize) -> Vec<f64> {
    (0..len).map(|i| (i * 37 % 64) as f64 / 32.0 - 1.0).collect()
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-10 * (1.0 + want.abs()), "element {i}: {got}, expected {want}");
    }
}

/// The columns `1..c + 1` of a matrix [rows, c + 3] with `data` [rows, c] in them.
fn columns(data: &[f64], rows: usize, c: usize, device: &Device) -> Tensor {
    let mut wide = vec![f64::NAN; rows * (c + 3)];
    for i in 0..rows {
        wide[i * (c + 3) + 1..i * (c + 3) + 1 + c].copy_from_slice(&data[i * c..(i + 1) * c]);
    }
    Tensor::from_slice(&wide, &[rows, c + 3], device).and_then(|t| t.narrow(1, 1, c)).expect("a view")
}

#[test]
fn means_and_gradients_are_the_formula() {
    for (n, k, v, c) in [(1, 1, 1, 1), (6, 1, 9, 32), (50, 4, 40, 70), (3000, 3, 11, 33), (700, 2, 300, 100)] {
        let (ids, table, d_out) = (ids(n * k, v), values(v * c), values(n * c));
        let mut out = vec![0.0; n * c];
        let mut d_table = vec![0.0; v * c];
        for (position, &id) in ids.iter().enumerate() {
            for j in 0..c {
                out[position / k * c + j] += table[id as usize * c + j] / k as f64;
                d_table[id as usize * c + j] += d_out[position / k * c + j] / k as f64;
            }
        }
        let mut bits: Vec<Vec<f64>> = Vec::new();
        for threads in [1, 2, 3, 7] {
            let device = Device::cpu_with_threads(threads).expect("a device");
            let table = columns(&table, v, c, &device);
            let got = Tensor::from_slice(&vec![f64::NAN; n * c], &[n, c], &device).expect("a tensor");
            let id_tensor = Tensor::from_slice(&ids, &[n, k], &device).expect("a tensor");
            device.backend().patch_embedding(&got, &table, &id_tensor).expect("means");
            close(&got.to_vec::<f64>().expect("f64"), &out);

            let index = ScatterIndex::new(&ids, v, &device).expect("an index");
            let d_out = columns(&d_out, n, c, &device);
            let got = Tensor::from_slice(&vec![f64::NAN; v * c], &[v, c], &device).expect("a tensor");
            let backend = device.backend();
            backend.patch_embedding_backward(Destination::write(&got), &d_out, &index, k).expect("a gradient");
            let first = got.to_vec::<f64>().expect("f64");
            close(&first, &d_table);
            backend.patch_embedding_backward(Destination::add(&got), &d_out, &index, k).expect("a gradient");
            close(&got.to_vec::<f64>().expect("f64"), &d_table.iter().map(|d| 2.0 * d).collect::<Vec<_>>());
            bits.push(first);
        }
        let same = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(bits.iter().all(|b| same(b, &bits[0])), "threads change bits");
    }
}

#[test]
fn nothing_to_do() {
    let device = Device::cpu_with_threads(2).expect("a device");
    let table = Tensor::from_slice(&[f64::NAN; 6], &[3, 2], &device).expect("a tensor");
    let none = Tensor::from_slice::<f64>(&[], &[0, 2], &device).expect("a tensor");
    let ids = Tensor::from_slice::<i32>(&[], &[0, 4], &device).expect("a tensor");
    device.backend().patch_embedding(&none, &table, &ids).expect("nothing to do");
    let index = ScatterIndex::new(&[], 3, &device).expect("an index");
    device.backend().patch_embedding_backward(Destination::write(&table), &none, &index, 4).expect("zeros");
    assert_eq!(table.to_vec::<f64>().expect("f64"), [0.0; 6]);
}
