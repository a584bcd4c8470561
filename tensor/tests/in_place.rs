//! Where the contract lets an output stand in the place of an input, or beside it in one buffer, the results are those of an output of its
//! own, to the bit.

use patchgpt_tensor::{Backend, Binary, DType, Destination, Device, Distribution, Result, Tensor, Unary};

const DTYPES: [DType; 3] = [DType::F32, DType::F64, DType::BF16];

fn random(shape: &[usize], seed: u64, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::random(shape, Distribution::Normal { mean: 0.3, std: 1.0 }, seed, 0, DType::F64, device)?.cast(dtype)
}

/// `run(backend, out, x)` with an `out` of its own, filled as x is, and with x itself, also in the midst of a larger buffer.
fn check(what: &str, x: &Tensor, run: impl Fn(&dyn Backend, &Tensor, &Tensor) -> Result<()>) -> Result<()> {
    let backend = x.device().backend();
    let (apart, last) = (x.copy()?, x.rank() - 1);
    run(backend, &apart, &x.copy()?)?;
    let mut wide = x.shape().to_vec();
    wide[last] += 3;
    let window = Tensor::zeros(&wide, x.dtype(), x.device())?.narrow(last, 2, x.dim(last))?;
    window.copy_(x)?;
    let bits = |tensor: &Tensor| Ok(tensor.to_f64_vec()?.into_iter().map(f64::to_bits).collect::<Vec<u64>>());
    for place in [x.copy()?, window] {
        run(backend, &place, &place)?;
        assert_eq!(bits(&place)?, bits(&apart)?, "{what}, {}", x.dtype());
        assert_ne!(bits(&place)?, bits(x)?, "{what}, {}: nothing was computed", x.dtype());
    }
    Ok(())
}

/// Under Miri, which interprets, without the last, the largest.
fn sized<T>(shapes: &[T]) -> &[T] {
    &shapes[..shapes.len() - usize::from(cfg!(miri))]
}

#[test]
fn element_wise() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    // Hundreds of checks for each shape.
    let shapes: &[&[usize]] = if cfg!(miri) { &[&[2, 3]] } else { &[&[7], &[3, 50], &[300, 40]] };
    for dtype in DTYPES {
        for &shape in shapes {
            let (x, mut others) = (random(shape, 1, dtype, &device)?, vec![random(shape, 2, dtype, &device)?]);
            if let [m, n] = *shape {
                others.push(random(&[n, m], 3, dtype, &device)?.t()?);
                others.push(random(&[m, 1], 4, dtype, &device)?.broadcast_to(shape)?);
            }
            for op in [Unary::Neg, Unary::Exp, Unary::Tanh, Unary::Square, Unary::Affine { mul: 2.0, add: 0.5 }] {
                check(&format!("{op:?}"), &x, |on, out, x| on.unary(out, op, x))?;
            }
            for op in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min] {
                for (other, accumulate) in others.iter().flat_map(|other| [(other, false), (other, true)]) {
                    check(&format!("{op:?}, left"), &x, |on, out, x| {
                        on.binary(Destination { tensor: out, accumulate }, op, x, other)
                    })?;
                    check(&format!("{op:?}, right"), &x, |on, out, x| {
                        on.binary(Destination { tensor: out, accumulate }, op, other, x)
                    })?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn elements_that_lie_apart() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    for dtype in DTYPES {
        let values = random(&[6, 8], 1, dtype, &device)?;
        let columns = |of: &Tensor| of.t();
        let every_second = |of: &Tensor| of.reshape(&[6, 4, 2])?.narrow(2, 1, 1)?.squeeze(2);
        for view in [&columns as &dyn Fn(&Tensor) -> Result<Tensor>, &every_second] {
            let unary = |out: &Tensor, x: &Tensor| device.backend().unary(out, Unary::Tanh, x);
            let square = |out: &Tensor, x: &Tensor| device.backend().binary(Destination::write(out), Binary::Mul, x, x);
            let added = |out: &Tensor, x: &Tensor| device.backend().binary(Destination::add(out), Binary::Mul, x, x);
            for run in [&unary as Op, &square, &added] {
                let (whole, apart) = (values.copy()?, values.copy()?);
                run(&view(&whole)?, &view(&whole)?)?;
                run(&view(&apart)?, &view(&values)?)?;
                // What lies between the elements is compared too.
                assert_eq!(whole.to_f64_vec()?, apart.to_f64_vec()?, "{dtype}");
            }
        }
    }
    Ok(())
}

/// An op of an output and an input.
type Op<'a> = &'a dyn Fn(&Tensor, &Tensor) -> Result<()>;

#[test]
fn halves_of_one_buffer_are_apart() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    for dtype in DTYPES {
        let (both, other) = (random(&[2, 30, 40], 1, dtype, &device)?, random(&[30, 40], 2, dtype, &device)?);
        let (x, out) = (both.narrow(0, 0, 1)?.squeeze(0)?, both.narrow(0, 1, 1)?.squeeze(0)?);
        let backend = device.backend();
        let unary = |out: &Tensor, x: &Tensor| backend.unary(out, Unary::Tanh, x);
        let left = |out: &Tensor, x: &Tensor| backend.binary(Destination::write(out), Binary::Sub, x, &other);
        let right = |out: &Tensor, x: &Tensor| backend.binary(Destination::write(out), Binary::Sub, &other, x);
        for run in [&unary as Op, &left, &right] {
            let (before, expected) = (x.copy()?, x.copy()?);
            run(&out, &x)?;
            run(&expected, &before)?;
            assert_eq!(out.to_f64_vec()?, expected.to_f64_vec()?, "{dtype}");
            assert_eq!(x.to_f64_vec()?, before.to_f64_vec()?, "{dtype}: the input");
        }
    }
    Ok(())
}

#[test]
fn rotations() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    for dtype in DTYPES {
        for shape in sized(&[[1, 5, 1, 2], [2, 9, 3, 24], [2, 40, 4, 64]]) {
            let x = random(shape, 1, dtype, &device)?;
            let (cos, sin) = Tensor::rope_table(1, shape[1], shape[3], 100.0, dtype, &device)?;
            for inverse in [false, true] {
                check("rope", &x, |on, out, x| on.rope(out, x, &cos, &sin, inverse))?;
            }
        }
    }
    Ok(())
}

#[test]
fn backward_of_norms() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    // More rows than are summed at a time.
    let shapes: &[[usize; 2]] = if cfg!(miri) { &[[1, 3], [70, 3]] } else { &[[1, 3], [70, 33], [130, 64]] };
    for dtype in DTYPES {
        for &[rows, width] in shapes {
            let (x, weight) = (random(&[rows, width], 1, dtype, &device)?, random(&[width], 2, dtype, &device)?);
            let d_out = random(&[rows, width], 3, dtype, &device)?;
            let rstd = x.rms_norm(&weight, 1e-5)?.rstd;
            check("rms_norm", &d_out, |on, out, d_out| {
                on.rms_norm_backward(Some(Destination::write(out)), None, d_out, &x, &weight, &rstd)
            })?;
            let saved = x.layer_norm(&weight, &weight, 1e-5)?;
            check("layer_norm", &d_out, |on, out, d_out| {
                let to = Some(Destination::write(out));
                on.layer_norm_backward(to, None, None, d_out, &x, &weight, &saved.mean, &saved.rstd)
            })?;
        }
    }
    Ok(())
}

#[test]
fn gradients_of_logits() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    for dtype in DTYPES {
        for &[rows, vocabulary] in sized(&[[1, 5], [9, 67], [40, 300]]) {
            let logits = random(&[rows, vocabulary], 1, dtype, &device)?;
            let wide = dtype.accumulator();
            let (weights, d_losses) = (random(&[2], 2, wide, &device)?, random(&[rows], 3, wide, &device)?);
            let ids: Vec<i32> =
                (0..2 * rows as i32).map(|i| if i % 7 == 6 { -100 } else { i * 5 % vocabulary as i32 }).collect();
            let targets = Tensor::from_slice(&ids, &[rows, 2], &device)?;
            let (losses, lse) = (Tensor::zeros(&[rows], wide, &device)?, Tensor::zeros(&[rows], wide, &device)?);
            device.backend().cross_entropy(&losses, &lse, &logits, &targets, &weights)?;
            for accumulate in [false, true] {
                check(&format!("cross_entropy, added: {accumulate}"), &logits, |on, tensor, logits| {
                    let to = Destination { tensor, accumulate };
                    on.cross_entropy_backward(to, &d_losses, logits, &lse, &targets, &weights)
                })?;
            }
        }
    }
    Ok(())
}
