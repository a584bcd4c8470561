//! Arguments that do not fit are errors that name the op and what it got, never panics.

use patchgpt_tensor::{AdamW, DType, Destination, Device, Result, Rounded, Rounding, ScatterIndex, Tensor};

/// One device for all tests: tensors of two do not meet.
fn device() -> &'static Device {
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    DEVICE.get_or_init(|| Device::cpu().expect("a CPU"))
}

fn zeros(shape: &[usize]) -> Tensor {
    typed(shape, DType::F32)
}

fn typed(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, device()).unwrap()
}

fn ids(ids: &[i32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(ids, shape, device()).unwrap()
}

/// What fails, and says all of `parts`.
fn refused<T>(result: Result<T>, parts: &[&str]) {
    let message = result.err().unwrap().to_string();
    assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} is not in: {message}");
}

#[test]
fn views_name_what_is_not_there() {
    let x = zeros(&[2, 3]);
    refused(Tensor::from_slice(&[1.0f32; 5], &[2, 3], device()), &["from_slice", "6", "5"]);
    refused(x.transpose(0, 2), &["transpose", "0 and 2", "[2, 3]"]);
    refused(x.transpose(2, 0), &["transpose", "2 and 0", "[2, 3]"]);
    refused(zeros(&[3]).t(), &["t", "2 dimensions", "[3]"]);
    refused(x.unsqueeze(3), &["unsqueeze", "3", "[2, 3]"]);
    refused(x.squeeze(0), &["squeeze", "dimension 0", "[2, 3]"]);
    refused(x.squeeze(2), &["squeeze", "dimension 2", "[2, 3]"]);
    assert_eq!(x.unsqueeze(2).unwrap().shape(), [2, 3, 1]);
    assert_eq!(x.unsqueeze(0).unwrap().squeeze(0).unwrap().shape(), [2, 3]);
    refused(x.t().unwrap().view(&[6]), &["view", "[6]", "reshape"]);
    refused(x.to_vec::<f64>(), &["to_vec", "f64", "f32"]);
    refused(x.item(), &["item", "[2, 3]"]);
    refused(x.max_abs_diff(&zeros(&[3, 2])), &["max_abs_diff", "[2, 3]", "[3, 2]"]);
    refused(Tensor::concat(&[&x, &x], 2), &["concat", "2", "[2, 3]"]);
    refused(Tensor::concat(&[&x, &typed(&[2, 3], DType::F64)], 0), &["concat", "f32", "f64"]);
}

#[test]
fn rotations_take_even_heads_and_tables_of_their_kind() {
    let device = device();
    for (head, base) in [(3, 1e4), (4, 0.0), (4, -1.0), (4, f64::NAN), (4, f64::INFINITY)] {
        let got = format!("{head} and {base}");
        refused(Tensor::rope_table(0, 2, head, base, DType::F32, device), &["rope_table", &got]);
    }
    let (cos, sin) = Tensor::rope_table(0, 2, 4, 1e4, DType::F32, device).unwrap();
    refused(zeros(&[2, 3, 4]).rope(&cos, &sin, false), &["rope", "[B, T, H, D]", "[2, 3, 4]"]);
    refused(zeros(&[1, 2, 3, 5]).rope(&cos, &sin, false), &["rope", "even", "5"]);
    let (cos, sin) = Tensor::rope_table(0, 2, 4, 1e4, DType::F64, device).unwrap();
    refused(zeros(&[1, 2, 3, 4]).rope(&cos, &sin, false), &["rope", "f32", "f64"]);
}

#[test]
fn embeddings_take_a_table_and_ids_with_their_index() {
    let table = zeros(&[5, 2]);
    refused(zeros(&[5, 2, 1]).patch_embedding(&ids(&[1], &[1, 1])), &["patch_embedding", "[5, 2, 1]"]);
    refused(table.patch_embedding(&ids(&[], &[2, 0])), &["patch_embedding", "at least 1", "[2, 0]"]);
    refused(table.patch_embedding(&ids(&[1, 5], &[1, 2])), &["patch_embedding", "5"]);
    refused(table.patch_embedding(&zeros(&[1, 2])), &["patch_embedding", "i32", "f32"]);
    let device = device();
    let index = ScatterIndex::new(&[0, 3, 3, 1], 5, device).unwrap();
    let d_out = zeros(&[2, 2]);
    assert!(d_out.patch_embedding_backward(&index, 2, Destination::write(&table)).is_ok());
    for patch in [0, 1, 4] {
        let result = d_out.patch_embedding_backward(&index, patch, Destination::write(&table));
        refused(result, &["patch_embedding_backward", &format!("2 rows of {patch} ids"), "4 positions"]);
    }
    refused(ScatterIndex::new(&[0, 5], 5, device), &["5"]);
    refused(ScatterIndex::new(&[0, -1], 5, device), &["-1"]);
    // Positions sorted by id, and where each id's begin: [1] has id 0, [0, 2] have id 2.
    assert!(ScatterIndex::from_parts(&[1, 0, 2], &[0, 1, 1, 3], device).is_ok());
    for offsets in [&[0, 2, 1, 3][..], &[1, 1, 1, 3], &[0, 1, 1, 2], &[0, 1, 1, 4]] {
        refused(ScatterIndex::from_parts(&[1, 0, 2], offsets, device), &["ascend from 0", "3"]);
    }
    refused(ScatterIndex::from_parts(&[1, 0, 3], &[0, 1, 1, 3], device), &["3"]);
    refused(ScatterIndex::from_parts(&[1, -1, 2], &[0, 1, 1, 3], device), &["-1"]);
}

#[test]
fn losses_take_targets_and_weights_that_fit() {
    let (logits, targets, weights) = (zeros(&[2, 4]), ids(&[0, 1, 2, 3], &[2, 2]), zeros(&[2]));
    refused(logits.cross_entropy(&ids(&[0, 1, 2], &[3, 1]), &zeros(&[1])), &["cross_entropy", "[2, K]", "[3, 1]"]);
    refused(logits.cross_entropy(&targets, &typed(&[2], DType::F64)), &["cross_entropy", "f32", "f64"]);
    refused(logits.cross_entropy(&ids(&[0, 1, 2, 4], &[2, 2]), &weights), &["cross_entropy", "4"]);
    let (x, weight, scale) = (zeros(&[2, 3]), zeros(&[4, 3]), zeros(&[]));
    let head = |x: &Tensor, weight: &Tensor, scale: &Tensor| {
        x.linear_cross_entropy(weight, &targets, &weights, scale, None, None)
    };
    refused(head(&x, &zeros(&[3]), &scale), &["linear_cross_entropy", "[V, C]", "[3]"]);
    refused(head(&x, &zeros(&[4, 2]), &scale), &["linear_cross_entropy", "[.., 2]", "[4, 2]", "[2, 3]"]);
    refused(head(&x, &weight, &typed(&[], DType::F64)), &["linear_cross_entropy", "f32", "f64"]);
}

#[test]
fn a_linear_layer_takes_rows_a_matrix_and_a_vector() {
    let (x, weight) = (zeros(&[2, 3]), zeros(&[4, 3]));
    refused(x.linear(&zeros(&[4, 2]), None), &["linear", "[.., 2]", "[4, 2]", "[2, 3]"]);
    refused(x.linear(&zeros(&[3]), None), &["linear", "[O, I]", "[3]"]);
    refused(zeros(&[]).linear(&zeros(&[4, 1]), None), &["linear", "[.., 1]", "[]"]);
    refused(x.linear(&weight, Some(&zeros(&[3]))), &["linear", "the bias", "[4]", "[3]"]);
    refused(x.linear_gelu(&weight, Some(&typed(&[4], DType::F64))), &["linear", "f32", "f64"]);
    refused(typed(&[2, 3], DType::I32).linear(&typed(&[4, 3], DType::I32), None), &["linear", "i32"]);
}

#[test]
fn attention_takes_four_dimensions_and_heads_that_divide() {
    let q = zeros(&[1, 2, 3, 4]);
    refused(q.causal_attention(&zeros(&[2, 3, 4]), &zeros(&[2, 3, 4]), 1.0), &["causal_attention", "[2, 3, 4]"]);
    refused(q.causal_attention(&zeros(&[1, 2, 2, 4]), &zeros(&[1, 2, 2, 4]), 1.0), &["causal_attention", "3", "2"]);
}

#[test]
fn updates_take_flat_buffers_of_one_length_scalars_and_betas_below_one() {
    let ([p, g, m, v], [rate, clip]) = ([(); 4].map(|()| zeros(&[6])), [(); 2].map(|()| zeros(&[])));
    let step = ids(&[1], &[]);
    let fine = AdamW {
        parameters: &p,
        gradients: &g,
        first_moment: &m,
        second_moment: &v,
        learning_rate: &rate,
        clip: &clip,
        step: &step,
        beta1: 0.0,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        decay_len: 6,
        rounded: None,
    };
    assert!(fine.run().is_ok());
    let (matrix, short, wide, flat) = (zeros(&[2, 3]), zeros(&[5]), typed(&[6], DType::F64), zeros(&[1]));
    let apart = zeros(&[6, 2]).narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
    for (wrong, part) in [(&matrix, "[2, 3]"), (&short, "[5]"), (&apart, "contiguous"), (&wide, "f64")] {
        refused(AdamW { gradients: wrong, ..fine }.run(), &["adamw", part]);
        refused(AdamW { first_moment: wrong, ..fine }.run(), &["adamw", part]);
        refused(AdamW { second_moment: wrong, ..fine }.run(), &["adamw", part]);
    }
    for parameters in [&matrix, &apart] {
        refused(AdamW { parameters, ..fine }.run(), &["adamw"]);
    }
    let bf16 = typed(&[6], DType::BF16);
    let (scalar, buffers) = (typed(&[], DType::BF16), AdamW { parameters: &bf16, gradients: &bf16, ..fine });
    let buffers = AdamW { first_moment: &bf16, second_moment: &bf16, learning_rate: &scalar, clip: &scalar, ..buffers };
    refused(buffers.run(), &["adamw", "master weights", "bf16"]);
    refused(AdamW { learning_rate: &flat, ..fine }.run(), &["adamw", "the learning rate", "[1]"]);
    refused(AdamW { learning_rate: &typed(&[], DType::F64), ..fine }.run(), &["adamw", "f64"]);
    refused(AdamW { clip: &flat, ..fine }.run(), &["adamw", "the clip factor", "[1]"]);
    refused(AdamW { step: &ids(&[1], &[1]), ..fine }.run(), &["adamw", "the step", "[1]"]);
    refused(AdamW { step: &rate, ..fine }.run(), &["adamw", "i32", "f32"]);
    for beta in [1.0, -0.1, f64::NAN] {
        refused(AdamW { beta1: beta, ..fine }.run(), &["adamw", "[0, 1)", &beta.to_string()]);
        refused(AdamW { beta2: beta, ..fine }.run(), &["adamw", "[0, 1)", &beta.to_string()]);
    }
    refused(AdamW { decay_len: 7, ..fine }.run(), &["adamw", "at most 6", "7"]);
    for written in
        [AdamW { parameters: &g, ..fine }, AdamW { first_moment: &g, ..fine }, AdamW { second_moment: &g, ..fine }]
    {
        refused(written.run(), &["adamw", "overlap"]);
    }
    refused(AdamW { first_moment: &p, ..fine }.run(), &["adamw", "overlap"]);
    let (rounding, long) = (Rounding::Nearest, typed(&[7], DType::BF16));
    for (tensor, parts) in [(&long, ["[6]", "[7]"]), (&clip, ["[6]", "[]"]), (&v, ["bf16", "f32"])] {
        let rounded = Some(Rounded { tensor, rounding });
        refused(AdamW { rounded, ..fine }.run(), &["adamw", parts[0], parts[1]]);
    }
    for most in [0.0, -1.0, f64::NAN] {
        refused(g.global_norm(most), &["global_norm", "positive", &most.to_string()]);
    }
    refused(g.global_norm_into(1.0, &flat, &clip), &["global_norm", "the norm", "[1]"]);
    refused(g.global_norm_into(1.0, &clip, &flat), &["global_norm", "the clip factor", "[1]"]);
}

#[test]
fn dtypes_have_names() {
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16, DType::I32, DType::I64] {
        assert_eq!(dtype.to_string().parse(), Ok(dtype));
    }
    let message = "f8".parse::<DType>().unwrap_err();
    assert!(message.contains("'f8'") && message.contains("bf16"), "{message}");
}
