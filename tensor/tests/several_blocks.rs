//! Work that is cut into several blocks: what is added to an output is what would be written, and every element of an output whose elements
//! lie apart is written, and nothing between them.

use patchgpt_tensor::{Binary, DType, Destination, Device, Distribution, Reduction, Result, Tensor, Unary};

fn random(shape: &[usize], seed: u64, dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::random(shape, Distribution::Normal { mean: 0.3, std: 1.0 }, seed, 0, DType::F64, device)?.cast(dtype)
}

/// What `run` adds to numbers of the shape `shape` is what it writes.
fn check(what: &str, shape: &[usize], like: &Tensor, run: impl Fn(Destination) -> Result<()>) -> Result<()> {
    let before = random(shape, 99, like.dtype(), like.device())?;
    let (written, added) = (before.affine(f64::NAN, 0.0)?, before.copy()?);
    run(Destination::write(&written))?;
    run(Destination::add(&added))?;
    assert_eq!(added.to_f64_vec()?, before.add(&written)?.to_f64_vec()?, "{what}, {}", like.dtype());
    Ok(())
}

#[test]
fn what_is_added_is_what_would_be_written() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    for dtype in [DType::F32, DType::F64] {
        for [rows, width] in [[400, 150], [20, 3000]] {
            let shape = [rows, width];
            let random = |shape: &[usize], seed| random(shape, seed, dtype, &device);
            let (x, d_out) = (random(&shape, 1)?, random(&shape, 2)?);
            check("softmax", &shape, &x, |d| x.softmax_backward(&d_out, d))?;
            check("gelu", &shape, &x, |d| x.gelu_backward(&d_out, d))?;
            let joined = random(&[rows, 2 * width], 3)?;
            check("swiglu", &[rows, 2 * width], &x, |d| joined.swiglu_backward(&d_out, d))?;
            for op in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min] {
                for other in [&d_out, &random(&[width], 4)?, &random(&[rows, 1], 5)?, &random(&[width, rows], 6)?.t()?]
                {
                    for x in [&x, &x.t()?.copy()?.t()?] {
                        check(&format!("{op:?}"), &shape, x, |d| x.binary_into(op, other, d))?;
                    }
                }
            }
            for (name, to) in [("rows", [rows, 1]), ("columns", [1, width]), ("all", [1, 1])] {
                check(name, &to, &x, |d| x.reduce_into(Reduction::Sum, d))?;
                check(name, &to, &x, |d| x.reduce_into(Reduction::Max, d))?;
            }
        }
    }
    Ok(())
}

/// `run` writes into views [m, n] with gaps between rows, columns or neither what it writes into an output without gaps.
fn check_apart(what: &str, m: usize, n: usize, like: &Tensor, run: impl Fn(&Tensor) -> Result<()>) -> Result<()> {
    let dense = Tensor::full(&[m, n], f64::NAN, like.dtype(), like.device())?;
    run(&dense)?;
    for (pairs, dim) in [([m, n, 2], 2), ([m, 2, n], 1), ([2, m, n], 0)] {
        let pairs = Tensor::full(&pairs, 0.5, like.dtype(), like.device())?;
        let half = |i| pairs.narrow(dim, i, 1).and_then(|half| half.squeeze(dim));
        let (out, beside) = (half(1)?, half(0)?);
        run(&out)?;
        assert_eq!(out.to_f64_vec()?, dense.to_f64_vec()?, "{what}: [{m}, {n}], pairs along {dim}");
        assert!(beside.to_f64_vec()?.iter().all(|x| *x == 0.5), "{what}: [{m}, {n}], pairs along {dim}: beside");
    }
    Ok(())
}

#[test]
fn elements_that_lie_apart_are_written() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    let (wide, narrow, double) = (DType::F32, DType::BF16, DType::F64);
    for [m, n] in [[3, 4], [70, 300], [300, 70]] {
        for (from, to) in [(wide, wide), (wide, narrow), (narrow, wide), (double, wide)] {
            let (x, like) = (random(&[m, n], 1, from, &device)?, Tensor::scalar(0.0, to, &device)?);
            for x in [&x, &x.t()?.copy()?.t()?, &x.narrow(0, 0, 1)?, &x.narrow(1, 1, 1)?] {
                check_apart(&format!("{from} in {to}"), m, n, &like, |out| out.copy_(x))?;
            }
        }
        let (x, other) = (random(&[m, n], 1, wide, &device)?, random(&[n], 2, wide, &device)?);
        for x in [&x, &x.t()?.copy()?.t()?] {
            check_apart("tanh", m, n, x, |out| device.backend().unary(out, Unary::Tanh, x))?;
            check_apart("fill", m, n, x, |out| out.fill_(7.0))?;
            check_apart("sub", m, n, x, |out| x.binary_into(Binary::Sub, &other, Destination::write(out)))?;
            check_apart("mul", m, n, x, |out| {
                out.fill_(1.0)?;
                x.binary_into(Binary::Mul, x, Destination::add(out))
            })?;
        }
    }
    Ok(())
}

#[test]
fn copies_of_permuted_dimensions() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    let x = Tensor::from_slice(&(0..720).map(f64::from).collect::<Vec<f64>>(), &[2, 3, 4, 5, 6], &device)?;
    for order in [[0, 1, 4, 2, 3], [4, 3, 2, 1, 0], [0, 4, 1, 2, 3], [2, 0, 4, 3, 1], [0, 1, 2, 4, 3]] {
        let permuted = x.permute(&order)?;
        let expected: Vec<f64> = (0..720).map(|i| permuted.layout().offset_of(i) as f64).collect();
        assert_eq!(permuted.copy()?.to_f64_vec()?, expected, "{order:?}");
    }
    // A column, and matrices of several blocks.
    let column = x.reshape(&[120, 6])?.narrow(1, 2, 1)?.squeeze(1)?;
    assert_eq!(column.copy()?.to_f64_vec()?, (0..120).map(|i| f64::from(6 * i + 2)).collect::<Vec<f64>>());
    let turned = random(&[3, 70, 90], 1, DType::F64, &device)?.transpose(1, 2)?;
    let (all, layout) = (turned.transpose(1, 2)?.to_f64_vec()?, turned.layout());
    assert_eq!(turned.copy()?.to_f64_vec()?, (0..turned.len()).map(|i| all[layout.offset_of(i)]).collect::<Vec<f64>>());
    Ok(())
}

#[test]
fn reductions_of_many_rows() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    let at = |i: usize, j: usize| (i * 7 + j * 13) as f64 % 53.0;
    let values: Vec<f64> = (0..400 * 150).map(|i| at(i / 150, i % 150)).collect();
    let x = Tensor::from_slice(&values, &[400, 150], &device)?;
    let rows =
        |of: fn(f64, f64) -> f64| (0..400).map(|i| (0..150).map(|j| at(i, j)).fold(0.0, of)).collect::<Vec<f64>>();
    let columns =
        |of: fn(f64, f64) -> f64| (0..150).map(|j| (0..400).map(|i| at(i, j)).fold(0.0, of)).collect::<Vec<f64>>();
    for (op, of) in [(Reduction::Sum, (|a, b| a + b) as fn(f64, f64) -> f64), (Reduction::Max, f64::max)] {
        assert_eq!(x.reduce(op, &[1])?.to_f64_vec()?, rows(of));
        assert_eq!(x.reduce(op, &[0])?.to_f64_vec()?, columns(of));
    }
    Ok(())
}

#[test]
fn products_with_one_left_factor_into_interleaved_columns() -> Result<()> {
    let device = Device::cpu_with_threads(2)?;
    let (batch, m, k, n) = (3, 5, 7, 4);
    let (a, b) = (random(&[m, k], 1, DType::F64, &device)?, random(&[k, batch, n], 2, DType::F64, &device)?);
    let out = Tensor::full(&[m, batch, n], f64::NAN, DType::F64, &device)?;
    let (b, out) = (b.permute(&[1, 0, 2])?, out.permute(&[1, 0, 2])?);
    a.broadcast_to(&[batch, m, k])?.matmul_into(&b, 1.0, Destination::write(&out))?;
    for i in 0..batch {
        let expected = a.matmul(&b.narrow(0, i, 1)?.squeeze(0)?.copy()?)?;
        assert!(out.narrow(0, i, 1)?.squeeze(0)?.max_abs_diff(&expected)? <= 1e-12, "{i}");
    }
    Ok(())
}
