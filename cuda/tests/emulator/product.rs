//! The matrix product of `hopper.cu`, which uses every function of `kernels/hopper.cuh`, over numbers whose products and sums are exact: for the
//! emulator's tests, and for cards (tests/examples/intrinsics).

use patchgpt_cuda::{Cuda, KernelSource};
use patchgpt_tensor::{DType, Device, Tensor};

static HOPPER: KernelSource = KernelSource {
    name: "hopper",
    text: include_str!("hopper.cu"),
    headers: &[("hopper.cuh", include_str!("../../kernels/hopper.cuh"))],
};

/// One product: out [rows, columns] = 2 a b + bias over `depth`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) columns: usize,
    /// Which dimension of b is contiguous: `K` or `MN`.
    pub(crate) major: &'static str,
    pub(crate) a_registers: bool,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
}

/// Every width and layout that the prelude has: one step, two, and more than the ring has stages; rows and depth that tiles
/// do not divide.
pub(crate) fn shapes() -> Vec<Product> {
    let mut all = Vec::new();
    for columns in [64, 80, 96, 112, 128] {
        for (major, a_registers) in [("K", false), ("K", true), ("MN", false), ("MN", true)] {
            for (rows, depth) in [(128, 64), (1, 8), (130, 328)] {
                all.push(Product { columns, major, a_registers, rows, depth });
            }
        }
    }
    all
}

/// Small numbers that bf16 holds, so that products and sums are exact.
fn number(i: usize) -> f32 {
    ((i * 37 + i / 7 * 11) % 17) as f32 - 8.0
}

/// Runs a product `launches` times; says what was wrong, if anything.
pub(crate) fn run(device: &Device, product: Product, mistake: u32, launches: usize) -> Result<(), String> {
    let Product { columns, major, a_registers, rows, depth } = product;
    let cuda = device.downcast::<Cuda>().ok_or("no CUDA device")?;
    let text = |error: patchgpt_tensor::Error| error.to_string();
    let matrix = |shape: [usize; 2], first: usize| {
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| number(i + first)).collect();
        let tensor = Tensor::from_slice(&values, &shape, device)?.cast(DType::BF16)?;
        Ok::<_, patchgpt_tensor::Error>((values, tensor))
    };
    let (a_values, a) = matrix([rows, depth], 0).map_err(text)?;
    let b_shape = if major == "K" { [columns, depth] } else { [depth, columns] };
    let (b_values, b) = matrix(b_shape, 5).map_err(text)?;
    let bias_values: Vec<f32> = (0..columns).map(|i| number(i) / 4.0).collect();
    let bias = Tensor::from_slice(&bias_values, &[columns], device).map_err(text)?;
    let b_box = if major == "K" { [columns, 64] } else { [64, 64] };
    let panels = columns.next_multiple_of(64);
    let stage = ((128 + if major == "K" { columns } else { panels }) * 128_usize).next_multiple_of(1024);
    for _ in 0..launches {
        let out = Tensor::full(&[rows, columns], f64::NAN, DType::F32, device).map_err(text)?;
        let launch = cuda
            .kernel(&HOPPER, "hopper")
            .define("COLUMNS", columns)
            .define("B_MAJOR", major)
            .define("A_REGISTERS", i32::from(a_registers))
            .define("MISTAKE", mistake)
            .write(&out)
            .value(cuda.tensor_map(&a, &[128, 64]).map_err(text)?)
            .value(cuda.tensor_map(&b, &b_box).map_err(text)?)
            .read(&bias)
            .value(rows as u32)
            .value(depth as u32);
        let launch = launch.blocks(rows.div_ceil(128)).threads(384).shared(2 * stage + 1024);
        launch.launch().map_err(text)?;
        let got = out.to_vec::<f32>().map_err(text)?;
        for (i, &got) in got.iter().enumerate() {
            let (row, column) = (i / columns, i % columns);
            let b = |k: usize| if major == "K" { b_values[column * depth + k] } else { b_values[k * columns + column] };
            let sum: f32 = (0..depth).map(|k| 2.0 * a_values[row * depth + k] * b(k)).sum();
            let expected = sum + bias_values[column];
            if got != expected {
                return Err(format!("row {row}, column {column}: {got} instead of {expected}"));
            }
        }
    }
    Ok(())
}
