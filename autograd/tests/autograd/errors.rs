//! Mistakes in the use of the ops: an error names the op and what it got.

use crate::inputs::{device, normal, positive};
use patchgpt_autograd::{Error, Result, Var};
use patchgpt_tensor::{DType, ScatterIndex, Tensor};

/// Differentiates twice, which must fail with the name of the last op.
fn names_itself(name: &str, output: Result<Var>) {
    let output = output.unwrap();
    let ones = Tensor::full(output.shape(), 1.0, DType::F64, &device()).unwrap();
    output.backward_with(&ones, false).unwrap();
    let error = output.backward_with(&ones, false).unwrap_err();
    assert!(matches!(error, Error::Released { op } if op == name), "{name}: {error}");
}

#[test]
fn every_op_has_the_name_of_its_method() {
    let parameter = |shape: &[usize]| Var::parameter(positive(shape, 1));
    let (x, y, row) = (parameter(&[3, 4]), parameter(&[3, 4]), parameter(&[4]));
    names_itself("add", x.add(&y));
    names_itself("sub", x.sub(&y));
    names_itself("mul", x.mul(&y));
    names_itself("div", x.div(&y));
    names_itself("neg", x.neg());
    names_itself("exp", x.exp());
    names_itself("log", x.log());
    names_itself("sqrt", x.sqrt());
    names_itself("tanh", x.tanh());
    names_itself("sigmoid", x.sigmoid());
    names_itself("square", x.square());
    names_itself("recip", x.recip());
    names_itself("affine", x.affine(2.0, 1.0));
    names_itself("sum", x.sum(&[0]));
    names_itself("mean", x.mean(&[0]));
    names_itself("sum_all", x.sum_all());
    names_itself("reshape", x.reshape(&[12]));
    names_itself("permute", x.permute(&[1, 0]));
    names_itself("narrow", x.narrow(1, 1, 2));
    names_itself("broadcast_to", x.broadcast_to(&[2, 3, 4]));
    names_itself("concat", Var::concat(&[&x, &y], 0));
    names_itself("softmax", x.softmax());
    names_itself("gelu", x.gelu());
    names_itself("swiglu", x.swiglu());
    names_itself("rms_norm", x.rms_norm(&row, 1e-5));
    names_itself("layer_norm", x.layer_norm(&row, &row, 1e-5));
    names_itself("linear", x.linear(&y, None));
    names_itself("matmul", x.matmul(&parameter(&[4, 2])));
    let heads = parameter(&[2, 3, 2, 4]);
    names_itself("causal_attention", heads.causal_attention(&heads, &heads, 0.5));
    let (cos, sin) = Tensor::rope_table(0, 3, 4, 1e4, DType::F64, &device()).unwrap();
    names_itself("rope", heads.rope(&cos, &sin));
    names_itself("self_attention", parameter(&[2, 3, 16]).self_attention(2, 1, Some((&cos, &sin)), 0.5));
    let targets = Tensor::from_slice(&[1, 0, 3, 2, 1, 1], &[3, 2], &device()).unwrap();
    let (weights, scale) = (positive(&[2], 2), Tensor::scalar(0.5, DType::F64, &device()).unwrap());
    names_itself("cross_entropy", x.cross_entropy(&targets, &weights));
    names_itself("linear_cross_entropy", x.linear_cross_entropy(&parameter(&[4, 4]), &targets, &weights, &scale));
    let ids = [2, 0, 1, 1];
    let index = ScatterIndex::new(&ids, 3, &device()).unwrap();
    let ids = Tensor::from_slice(&ids, &[1, 2, 2], &device()).unwrap();
    names_itself("patch_embedding", x.patch_embedding(&ids, &index));
}

/// What fails, and says all of `parts`.
fn refused(result: Result<Var>, parts: &[&str]) {
    let message = result.expect_err("a mistake").to_string();
    assert!(parts.iter().all(|part| message.contains(part)), "{message}");
}

#[test]
fn linear_takes_no_other_shapes() {
    let parameter = |shape: &[usize]| Var::parameter(normal(shape, 1));
    let x = parameter(&[2, 3]);
    refused(x.linear(&parameter(&[4, 2]), None), &["linear", "x [2, 3]", "weight [4, 2]"]);
    refused(x.linear(&parameter(&[3]), None), &["linear", "x [2, 3]", "weight [3]"]);
    refused(x.linear(&parameter(&[1, 4, 3]), None), &["linear", "weight [1, 4, 3]"]);
    refused(parameter(&[]).linear(&parameter(&[4, 1]), None), &["linear", "x []"]);
    // A bias that would broadcast.
    for bias in [&[1][..], &[], &[3], &[2, 4]] {
        let shape = format!("bias {bias:?}");
        refused(x.linear(&parameter(&[4, 3]), Some(&parameter(bias))), &["linear", "weight [4, 3]", &shape]);
    }
}

#[test]
fn self_attention_takes_no_other_shapes() {
    let parameter = |shape: &[usize]| Var::parameter(normal(shape, 1));
    let joined = parameter(&[2, 3, 16]);
    refused(joined.self_attention(3, 1, None, 1.0), &["self_attention", "3 heads and 1 key-value heads", "[2, 3, 16]"]);
    refused(joined.self_attention(0, 1, None, 1.0), &["self_attention", "0 heads and 1 key-value heads"]);
    refused(joined.self_attention(4, 0, None, 1.0), &["self_attention", "4 heads and 0 key-value heads"]);
    refused(joined.self_attention(0, 0, None, 1.0), &["self_attention", "0 heads and 0 key-value heads"]);
    refused(parameter(&[6, 16]).self_attention(2, 1, None, 1.0), &["self_attention", "[6, 16]"]);
    // H that G does not divide: the width fits.
    assert!(parameter(&[1, 2, 14]).self_attention(3, 2, None, 1.0).is_err());
}

#[test]
fn an_index_of_other_ids_is_refused() {
    let table = Var::parameter(normal(&[5, 2], 1));
    let ids = Tensor::from_slice(&[0, 3, 4, 1], &[2, 2], &device()).unwrap();
    for (indexed, vocabulary) in [(&[0, 3, 4, 1][..], 6), (&[0, 3, 4], 5), (&[0, 3, 4], 6)] {
        let index = ScatterIndex::new(indexed, vocabulary, &device()).unwrap();
        let got = format!("{} ids in 0..{vocabulary}", indexed.len());
        refused(table.patch_embedding(&ids, &index), &["patch_embedding", "4 ids in 0..5", &got]);
    }
}

#[test]
fn transpose_takes_dimensions_that_are_there() {
    let x = Var::parameter(normal(&[2, 3], 1));
    for (a, b) in [(0, 2), (2, 0), (2, 2)] {
        refused(x.transpose(a, b), &["transpose", &format!("{a} and {b}"), "[2, 3]"]);
    }
}
