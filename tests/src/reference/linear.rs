//! `y = x W^T + b` over the last dimension: x [.., in], W [out, in], b [out].

use crate::array::Array;

/// The rows' products, with the bias if there is one.
pub fn forward(x: &Array, weight: &Array, bias: Option<&Array>) -> Array {
    let mut shape = x.shape.clone();
    *shape.last_mut().expect("rank of at least 1") = weight.shape[0];
    let mut y = Array::zeros(&shape);
    for r in 0..x.rows() {
        for o in 0..weight.shape[0] {
            let mut sum = bias.map_or(0.0, |b| b.data[o]);
            for (x, w) in x.row(r).iter().zip(weight.row(o)) {
                sum += x * w;
            }
            y.row_mut(r)[o] = sum;
        }
    }
    y
}

/// Gradients for x, the weight and, if there is one, the bias.
pub fn backward(inputs: &[Array], d_y: &Array) -> Vec<Array> {
    let mut gradients: Vec<Array> = inputs.iter().map(|input| Array::zeros(&input.shape)).collect();
    let (x, weight) = (&inputs[0], &inputs[1]);
    for r in 0..x.rows() {
        for (o, d) in d_y.row(r).iter().enumerate() {
            for i in 0..x.width() {
                gradients[0].row_mut(r)[i] += d * weight.row(o)[i];
                gradients[1].row_mut(o)[i] += d * x.row(r)[i];
            }
            if let Some(d_bias) = gradients.get_mut(2) {
                d_bias.data[o] += d;
            }
        }
    }
    gradients
}
