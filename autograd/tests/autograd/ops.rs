//! Every op's gradient in f64 against central differences: sizes of 1, odd sizes, transposed, sliced, repeated and broadcast inputs.

use crate::inputs::{device, layouts, normal, positive};
use patchgpt_autograd::gradcheck::{Options, gradcheck};
use patchgpt_autograd::{Result, Var, recompute_cheap};
use patchgpt_tensor::{DType, IGNORE_INDEX, ScatterIndex, Tensor};

fn check(what: &str, f: impl Fn(&[Var]) -> Result<Var>, inputs: &[Tensor]) {
    let shapes: Vec<_> = inputs.iter().map(|x| *x.layout()).collect();
    let checked = gradcheck(f, inputs, &Options::default()).and_then(|report| report.into_result());
    checked.unwrap_or_else(|e| panic!("{what} of {shapes:?}: {e}"));
}

/// Checks a function of one tensor in all layouts of the shapes.
fn check_layouts(
    what: &str,
    shapes: &[&[usize]],
    make: fn(&[usize], u64) -> Tensor,
    f: impl Fn(&Var) -> Result<Var> + Copy,
) {
    for shape in shapes {
        for x in layouts(shape, make, 7) {
            check(what, |v| f(&v[0]), &[x]);
        }
    }
}

const SHAPES: [&[usize]; 5] = [&[], &[1], &[7], &[3, 5], &[2, 1, 3]];
const ROWS: [&[usize]; 4] = [&[1], &[6], &[3, 5], &[2, 1, 7]];

#[test]
fn unary() {
    check_layouts("neg", &SHAPES, normal, |x| x.neg());
    check_layouts("exp", &SHAPES, normal, |x| x.exp());
    check_layouts("log", &SHAPES, positive, |x| x.log());
    check_layouts("sqrt", &SHAPES, positive, |x| x.sqrt());
    check_layouts("tanh", &SHAPES, normal, |x| x.tanh());
    check_layouts("sigmoid", &SHAPES, normal, |x| x.sigmoid());
    check_layouts("square", &SHAPES, normal, |x| x.square());
    check_layouts("recip", &SHAPES, positive, |x| x.recip());
    check_layouts("affine", &SHAPES, normal, |x| x.affine(-2.5, 0.75));
    check_layouts("affine of slope 1", &SHAPES, normal, |x| x.affine(1.0, 3.0));
}

#[test]
fn binary() {
    let pairs: [(&[usize], &[usize]); 7] = [
        (&[3, 5], &[3, 5]),
        (&[3, 5], &[5]),
        (&[3, 1], &[1, 5]),
        (&[], &[2, 3]),
        (&[4, 1, 3], &[2, 1]),
        (&[1], &[1]),
        (&[2, 1, 2], &[1]),
    ];
    type Op = fn(&Var, &Var) -> Result<Var>;
    let ops: [(&str, Op); 4] = [("add", Var::add), ("sub", Var::sub), ("mul", Var::mul), ("div", Var::div)];
    for (what, op) in ops {
        for (a, b) in pairs {
            for (a, b) in layouts(a, normal, 1).into_iter().zip(layouts(b, positive, 2).into_iter().cycle()) {
                check(what, |v| op(&v[0], &v[1]), &[a, b]);
            }
        }
        let x = normal(&[3, 4], 5).affine(0.1, 2.0).unwrap();
        // Twice the same input, whose gradient is then both; the quotient's is zero.
        if what != "sub" && what != "div" {
            check(what, |v| op(&v[0], &v[0]), std::slice::from_ref(&x));
        }
        let constant = Var::constant(normal(&[3, 4], 6).affine(0.1, 1.0).unwrap());
        check(what, |v| op(&v[0], &constant), std::slice::from_ref(&x));
        check(what, |v| op(&constant, &v[0]), &[x]);
    }
}

#[test]
fn products() {
    let pairs: [(&[usize], &[usize]); 11] = [
        (&[2, 3], &[3, 4]),
        (&[1, 1], &[1, 1]),
        (&[3, 2, 3], &[3, 4]),
        (&[3, 2, 3], &[1, 3, 4]),
        (&[2, 3], &[3, 3, 1]),
        (&[2, 1, 1, 3], &[2, 3, 2]),
        (&[2, 2, 3], &[2, 3, 5]),
        (&[1, 2, 3], &[2, 3, 2]),
        // Some of the leading dimensions are shared, on either side or on both.
        (&[2, 3, 1, 2], &[3, 2, 1]),
        (&[3, 1, 2], &[2, 3, 2, 1]),
        (&[2, 1, 1, 2], &[1, 3, 2, 1]),
    ];
    for (a, b) in pairs {
        for a in layouts(a, normal, 1) {
            for b in layouts(b, normal, 2) {
                check("matmul", |v| v[0].matmul(&v[1]), &[a.clone(), b]);
            }
        }
    }
    for shape in [&[3][..], &[1, 3], &[5, 3], &[2, 3, 3]] {
        for (x, weight) in layouts(shape, normal, 1).into_iter().zip(layouts(&[4, 3], normal, 2)) {
            let bias = layouts(&[4], normal, 3).remove(1);
            check("linear", |v| v[0].linear(&v[1], None), &[x.clone(), weight.clone()]);
            check("linear_gelu", |v| v[0].linear_gelu(&v[1], None), &[x.clone(), weight.clone()]);
            let inputs = [x, weight, bias];
            check("linear with bias", |v| v[0].linear(&v[1], Some(&v[2])), &inputs);
            check("linear_gelu with bias", |v| v[0].linear_gelu(&v[1], Some(&v[2])), &inputs);
        }
    }
}

#[test]
fn reductions() {
    for dims in [&[][..], &[0], &[1], &[0, 2], &[0, 1, 2]] {
        for x in layouts(&[2, 3, 5], normal, 3) {
            check("sum", |v| v[0].sum(dims), std::slice::from_ref(&x));
            check("mean", |v| v[0].mean(dims), std::slice::from_ref(&x));
            // With something that depends on the elements before and after.
            check("mean of squares", |v| v[0].square()?.mean(dims)?.square(), &[x]);
        }
    }
    check_layouts("sum_all", &SHAPES, normal, |x| x.sum_all());
}

#[test]
fn views() {
    for x in layouts(&[2, 3, 4], normal, 4) {
        let x = std::slice::from_ref(&x);
        check("reshape", |v| v[0].square()?.reshape(&[4, 6]), x);
        check("reshape first", |v| v[0].reshape(&[8, 3])?.square(), x);
        check("permute", |v| v[0].permute(&[2, 0, 1])?.exp(), x);
        check("transpose", |v| v[0].transpose(0, 2)?.exp(), x);
        check("narrow", |v| v[0].narrow(1, 1, 2)?.exp(), x);
        check("overlapping slices", |v| v[0].narrow(2, 0, 3)?.mul(&v[0].narrow(2, 1, 3)?), x);
        check("broadcast_to", |v| v[0].reshape(&[2, 1, 12])?.broadcast_to(&[3, 2, 2, 12])?.square(), x);
    }
    for dim in 0..2 {
        let mut wide = [3, 4];
        wide[dim] = 1;
        for (a, b) in layouts(&[3, 4], normal, 5).into_iter().zip(layouts(&wide, normal, 6).into_iter().cycle()) {
            check("concat", |v| Var::concat(&[&v[0], &v[1], &v[0]], dim)?.square(), &[a, b]);
        }
    }
}

#[test]
fn rows() {
    check_layouts("softmax", &ROWS[1..], normal, |x| x.softmax());
    check_layouts("gelu", &ROWS, normal, |x| x.gelu());
    check_layouts("swiglu", &[&[2], &[3, 10], &[2, 1, 6]], normal, |x| x.swiglu());
    for shape in [&[6][..], &[3, 5], &[2, 1, 7]] {
        let c = shape[shape.len() - 1];
        for x in layouts(shape, normal, 1) {
            // A row of equal elements has no variance to divide by.
            if x.rank() == 1 && x.strides() == [0] {
                continue;
            }
            let weight = layouts(&[c], normal, 2).remove(1);
            let bias = normal(&[c], 3);
            check("rms_norm", |v| v[0].rms_norm(&v[1], 1e-5), &[x.clone(), weight.clone()]);
            check("layer_norm", |v| v[0].layer_norm(&v[1], &v[2], 1e-5), &[x, weight, bias]);
        }
    }
    // One column: the norm of a single number depends on eps alone.
    check("rms_norm", |v| v[0].rms_norm(&v[1], 0.5), &[normal(&[3, 1], 1), normal(&[1], 2)]);
}

#[test]
fn norms_with_some_inputs_tracked() {
    let (x, weight, bias) = (normal(&[3, 5], 1), normal(&[5], 2), normal(&[5], 3));
    check("rms_norm for x", |v| v[0].rms_norm(&Var::constant(weight.clone()), 1e-5), std::slice::from_ref(&x));
    check("rms_norm for w", |v| Var::constant(x.clone()).rms_norm(&v[0], 1e-5), std::slice::from_ref(&weight));
    let (x0, w0, b0) = (Var::constant(x.clone()), Var::constant(weight.clone()), Var::constant(bias.clone()));
    check("layer_norm for x", |v| v[0].layer_norm(&w0, &b0, 1e-5), &[x]);
    check("layer_norm for w", |v| x0.layer_norm(&v[0], &b0, 1e-5), &[weight]);
    check("layer_norm for b", |v| x0.layer_norm(&w0, &v[0], 1e-5)?.square(), &[bias]);
}

/// Both outputs are used twice, so that gradients come together from several sides; under recomputation the norm is made again by itself.
#[test]
fn norms_with_an_addend_have_the_bits_of_the_two_ops() {
    let inputs = [normal(&[3, 5], 1), normal(&[3, 5], 2), normal(&[5], 3), normal(&[5], 4), normal(&[5, 5], 5)];
    let run = |layer: bool, together: bool, cheap: bool| -> Result<Vec<Vec<f64>>> {
        let v = inputs.clone().map(Var::parameter);
        let [x, addend, weight, bias, matrix] = &v;
        let body = || {
            let (sum, normed) = match (layer, together) {
                (true, true) => x.add_layer_norm(addend, weight, bias, 1e-5)?,
                (false, true) => x.add_rms_norm(addend, weight, 1e-5)?,
                (layer, _) => {
                    let sum = x.add(addend)?;
                    let normed = if layer { sum.layer_norm(weight, bias, 1e-5) } else { sum.rms_norm(weight, 1e-5) }?;
                    (sum, normed)
                }
            };
            sum.add(&normed.linear(matrix, None)?)?.mul(&sum)?.add(&normed)
        };
        let out = if cheap { recompute_cheap(body)? } else { body()? };
        out.square()?.sum_all()?.backward()?;
        let mut results = vec![out.tensor().to_f64_vec()?];
        for var in v.iter().filter(|v| layer || !std::ptr::eq(*v, bias)) {
            results.push(var.gradient().expect("a gradient").to_f64_vec()?);
        }
        Ok(results)
    };
    for layer in [false, true] {
        let plain = run(layer, false, false).unwrap();
        assert!(plain.iter().flatten().all(|x| *x != 0.0));
        for cheap in [false, true] {
            assert_eq!(run(layer, true, cheap).unwrap(), plain, "LayerNorm: {layer}, recomputed: {cheap}");
        }
    }
    let short = Var::constant(normal(&[5], 1));
    let message = Var::constant(inputs[0].clone()).add_rms_norm(&short, &short, 1e-5).err().unwrap().to_string();
    assert!(message.contains("the addend must have the shape [3, 5], got [5]"), "{message}");
}

#[test]
fn patch_embedding() {
    for patch in [1, 2, 3] {
        let ids = [4, 0, 4, 4, 2, 1, 6, 6, 0, 3, 4, 1];
        let index = ScatterIndex::new(&ids, 7, &device()).unwrap();
        let ids = Tensor::from_slice(&ids, &[2, 6 / patch, patch], &device()).unwrap();
        for table in layouts(&[7, 3], normal, 1) {
            check("patch_embedding", |v| v[0].patch_embedding(&ids, &index), &[table]);
        }
    }
}

#[test]
fn attention() {
    // [B, T, S, H, G, D]
    for [b, t, s, h, g, d] in [[1, 1, 1, 1, 1, 1], [2, 5, 5, 2, 2, 4], [1, 3, 5, 4, 2, 3], [2, 2, 2, 3, 1, 5]] {
        let scale = 1.0 / (d as f64).sqrt();
        let qs = layouts(&[b, t, h, d], normal, 1);
        let (ks, vs) = (layouts(&[b, s, g, d], normal, 2), layouts(&[b, s, g, d], normal, 3));
        for ((q, k), v) in qs.into_iter().zip(ks).zip(vs) {
            let (q0, k0, v0) = (Var::constant(q.clone()), Var::constant(k.clone()), Var::constant(v.clone()));
            check("causal_attention for v", |x| q0.causal_attention(&k0, &x[0], scale), std::slice::from_ref(&v));
            // A query that sees one key, or only equal ones, is nothing to the output.
            if s > 1 && k.strides()[1] > 0 {
                check("causal_attention for q", |x| x[0].causal_attention(&k0, &v0, scale), std::slice::from_ref(&q));
                check("causal_attention", |x| x[0].causal_attention(&x[1], &x[2], scale), &[q, k, v]);
            }
        }
    }
}

#[test]
fn rope_and_self_attention() {
    for [b, t, h, g, d] in [[2, 3, 2, 2, 4], [1, 5, 4, 2, 2], [2, 2, 3, 1, 6]] {
        let (cos, sin) = Tensor::rope_table(1, t, d, 10000.0, DType::F64, &device()).unwrap();
        for x in layouts(&[b, t, h, d], normal, 1) {
            check("rope", |v| v[0].rope(&cos, &sin), &[x]);
        }
        for x in layouts(&[b, t, (h + 2 * g) * d], normal, 2) {
            let rope = Some((&cos, &sin));
            let x = std::slice::from_ref(&x);
            check("self_attention", |v| v[0].self_attention(h, g, None, 0.7), x);
            check("self_attention, rotated", |v| v[0].self_attention(h, g, rope, 0.7), x);
        }
    }
}

/// Self-attention must be what its parts compute, forward and backward.
#[test]
fn self_attention_is_its_parts() {
    let (b, t, h, g, d) = (2, 5, 4, 2, 6);
    let (cos, sin) = Tensor::rope_table(0, t, d, 10000.0, DType::F64, &device()).unwrap();
    let x = normal(&[b, t, (h + 2 * g) * d], 9);
    let d_y = normal(&[b, t, h * d], 10);
    let joined = Var::parameter(x.clone());
    let fused = joined.self_attention(h, g, Some((&cos, &sin)), 0.4).unwrap();
    let parts = Var::parameter(x);
    let heads = parts.reshape(&[b, t, h + 2 * g, d]).unwrap();
    let q = heads.narrow(2, 0, h).unwrap().rope(&cos, &sin).unwrap();
    let k = heads.narrow(2, h, g).unwrap().rope(&cos, &sin).unwrap();
    let v = heads.narrow(2, h + g, g).unwrap();
    let plain = q.causal_attention(&k, &v, 0.4).unwrap().reshape(&[b, t, h * d]).unwrap();
    assert!(fused.tensor().max_abs_diff(plain.tensor()).unwrap() < 1e-12);
    fused.backward_with(&d_y, false).unwrap();
    plain.backward_with(&d_y, false).unwrap();
    let (fused, plain) = (joined.gradient().unwrap(), parts.gradient().unwrap());
    assert!(fused.max_abs_diff(&plain).unwrap() < 1e-12);
}

fn targets(rows: usize, patch: usize, vocabulary: i32) -> Tensor {
    let id = |i: usize| if i % 5 == 3 { IGNORE_INDEX } else { (i as i32 * 7 + 2) % vocabulary };
    let ids: Vec<i32> = (0..rows * patch).map(id).collect();
    Tensor::from_slice(&ids, &[rows, patch], &device()).unwrap()
}

#[test]
fn losses() {
    for (rows, patch, v, c) in [(1, 1, 3, 2), (5, 1, 7, 4), (6, 3, 5, 3), (4, 2, 2, 1)] {
        let targets = targets(rows, patch, v as i32);
        let weights = positive(&[patch], 8);
        for logits in layouts(&[rows, v], normal, 1) {
            check("cross_entropy", |x| x[0].cross_entropy(&targets, &weights), &[logits]);
        }
        let scale = Tensor::scalar(0.3, DType::F64, &device()).unwrap();
        for (x, weight) in layouts(&[rows, c], normal, 2).into_iter().zip(layouts(&[v, c], normal, 3)) {
            // Equal rows of the weight give equal logits, on which nothing depends.
            if weight.strides()[0] == 0 {
                continue;
            }
            let f = |p: &[Var]| p[0].linear_cross_entropy(&p[1], &targets, &weights, &scale);
            check("linear_cross_entropy", f, &[x.clone(), weight.clone()]);
            let (x0, w0) = (Var::constant(x.clone()), Var::constant(weight.clone()));
            let f = |p: &[Var]| x0.linear_cross_entropy(&p[0], &targets, &weights, &scale);
            check("linear_cross_entropy for the weight", f, &[weight]);
            let f = |p: &[Var]| p[0].linear_cross_entropy(&w0, &targets, &weights, &scale);
            check("linear_cross_entropy for x", f, &[x]);
        }
    }
}

/// The fused head must be the product and the loss.
#[test]
fn linear_cross_entropy_is_its_parts() {
    let (x, weight) = (normal(&[2, 3, 4], 1), normal(&[5, 4], 2));
    let (targets, weights) = (targets(6, 2, 5), positive(&[2], 3));
    let scale = Tensor::scalar(0.25, DType::F64, &device()).unwrap();
    let (a, b) = ([x.clone(), weight.clone()].map(Var::parameter), [x, weight].map(Var::parameter));
    let fused = a[0].linear_cross_entropy(&a[1], &targets, &weights, &scale).unwrap();
    let losses = b[0].linear(&b[1], None).unwrap().cross_entropy(&targets, &weights).unwrap();
    let plain = losses.sum_all().unwrap().mul(&Var::constant(scale)).unwrap();
    assert!((fused.item().unwrap() - plain.item().unwrap()).abs() < 1e-13);
    // A gradient of the loss other than 1, and twice.
    let (fused, plain) = (fused.affine(3.0, 0.0).unwrap(), plain.affine(3.0, 0.0).unwrap());
    let one = Tensor::scalar(1.0, DType::F64, &device()).unwrap();
    for _ in 0..2 {
        fused.backward_with(&one, true).unwrap();
        plain.backward_with(&one, true).unwrap();
    }
    for (a, b) in a.iter().zip(&b) {
        assert!(a.gradient().unwrap().max_abs_diff(&b.gradient().unwrap()).unwrap() < 1e-12);
    }
}

/// One call makes what two would, to the bit, and is recorded as those two.
#[test]
fn linear_gelu_is_linear_then_gelu() {
    let run = |fused: bool| {
        let inputs = [(&[2, 3, 8][..], 1), (&[5, 8], 2), (&[5], 3)];
        let [x, w, b] = inputs.map(|(shape, seed)| Var::parameter(normal(shape, seed).cast(DType::F32).unwrap()));
        let y = if fused { x.linear_gelu(&w, Some(&b)) } else { x.linear(&w, Some(&b)).and_then(|y| y.gelu()) };
        let y = y.unwrap();
        y.square().unwrap().sum_all().unwrap().backward().unwrap();
        let gradients = [&x, &w, &b].map(|v| v.gradient().unwrap().to_vec::<f32>().unwrap());
        (y.tensor().to_vec::<f32>().unwrap(), gradients)
    };
    assert_eq!(run(true), run(false));
}

/// The weight's gradient, a sum over many rows, is kept in f32 until it is added to a gradient in f32.
#[test]
fn the_head_of_a_bf16_model_does_not_round_its_weight_gradient() {
    let narrow = |x: Tensor| x.cast(DType::BF16).unwrap();
    let d_weight = Tensor::zeros(&[5, 4], DType::F32, &device()).unwrap();
    let weight = Var::parameter_with_gradient(narrow(normal(&[5, 4], 2)), d_weight.clone()).unwrap();
    let x = Var::parameter(narrow(normal(&[9, 4], 1)));
    let (weights, scale) = (normal(&[2], 3).cast(DType::F32).unwrap(), Tensor::scalar(1.0, DType::F32, &device()));
    let loss = x.linear_cross_entropy(&weight, &targets(9, 2, 5), &weights, &scale.unwrap()).unwrap();
    loss.backward().unwrap();
    assert_eq!(x.gradient().unwrap().dtype(), DType::BF16);
    let rounded = narrow(d_weight.clone()).to_f64_vec().unwrap();
    let exact = d_weight.to_f64_vec().unwrap();
    assert!(exact.iter().zip(&rounded).filter(|(exact, rounded)| exact != rounded).count() > 10);
}

/// Inputs without elements give gradients without elements, or zero where a parameter has some.
#[test]
fn zero_sizes() {
    let x = Var::parameter(Tensor::zeros(&[0, 3], DType::F64, &device()).unwrap());
    let (weight, bias) = (Var::parameter(normal(&[4, 3], 1)), Var::parameter(normal(&[4], 2)));
    let scale = Var::parameter(normal(&[4], 3));
    let y = x.linear(&weight, Some(&bias)).unwrap().gelu().unwrap().rms_norm(&scale, 1e-5).unwrap();
    let y = y.softmax().unwrap().add(&bias).unwrap().narrow(1, 1, 2).unwrap();
    let y = Var::concat(&[&y, &y], 0).unwrap().transpose(0, 1).unwrap().reshape(&[0]).unwrap();
    y.sum_all().unwrap().backward().unwrap();
    assert_eq!(x.gradient().unwrap().shape(), [0, 3]);
    for parameter in [weight, bias, scale] {
        let gradient = parameter.gradient().unwrap();
        assert_eq!(gradient.shape(), parameter.shape());
        assert!(gradient.to_vec::<f64>().unwrap().iter().all(|&g| g == 0.0));
    }
}
