//! The prelude's functions on a card against the emulator's answers: the emulator follows the PTX manual, a card is the
//! truth. Those of `hopper.cuh`, which need compute capability 9.0, make matrix products whose exact results are known.
//!
//! ```sh
//! cargo run -p patchgpt-tests --example intrinsics -- record answers     # on the emulator
//! cargo run -p patchgpt-tests --example intrinsics -- compare answers    # on card 0
//! ```

#[path = "../../../cuda/tests/emulator/product.rs"]
mod product;

use std::error::Error;

use patchgpt_cuda::{Cuda, KernelSource};
use patchgpt_tensor::{Device, Tensor};

static KERNEL: KernelSource = KernelSource { name: "intrinsics", text: include_str!("intrinsics.cu"), headers: &[] };

/// How results are compared.
#[derive(Clone, Copy)]
enum Kind {
    /// To the bit.
    Bits,
    /// As f32, NaN for NaN, within so much of the larger magnitude (and 1e-37: subnormal results may be flushed).
    Within(f32),
    /// As f32, within so much.
    Near(f32),
}
use Kind::{Bits, Near, Within};

/// A function and the rows that it fills.
const ROWS: &[(&str, usize, Kind)] = &[
    ("bf16_bits", 1, Bits),
    ("f16_bits of any f32", 1, Bits),
    ("f16_bits of moderate f32", 1, Bits),
    ("to_f32(f16)", 1, Within(0.0)),
    ("to_f32(bf16)", 1, Within(0.0)),
    ("pack_bf16", 1, Bits),
    ("f64_to_f32_odd", 1, Bits),
    ("max_nan", 1, Within(0.0)),
    ("min_nan", 1, Within(0.0)),
    ("fast_exp2", 1, Within(2.4e-7)),
    ("fast_exp2 of -inf and of subnormal results", 1, Within(2.4e-7)),
    ("fast_reciprocal", 1, Within(1.2e-7)),
    ("multiply_rounded in f32", 1, Bits),
    ("add_rounded in f32", 1, Bits),
    ("multiply_rounded in f64", 2, Bits),
    ("add_rounded in f64", 2, Bits),
    ("multiply_high", 1, Bits),
    ("shuffle_xor", 1, Bits),
    ("shuffle_from", 1, Bits),
    ("shuffle_down", 1, Bits),
    ("shuffle_up", 1, Bits),
    ("warp_sum", 1, Bits),
    ("warp_sum of four lanes", 1, Bits),
    ("warp_max", 1, Bits),
    ("atomic_add", 2, Bits),
    ("load_once, store_once, load_pack", 4, Bits),
    ("async_copy_16", 4, Bits),
    ("async_copy_16_zero_fill", 4, Bits),
    ("async_copy_4", 1, Bits),
    ("load_matrices_4", 4, Bits),
    ("load_matrices_4_transposed", 4, Bits),
    ("load_matrices_2", 2, Bits),
    ("load_matrices_2_transposed", 2, Bits),
    // Products are exact, their sum is rounded in an order that is the hardware's own.
    ("multiply_16x8x16", 4, Near(4e-6)),
];

/// Words of any bits, f32 of any bits with every kind among them, moderate f32, and pairs of moderate bf16.
fn inputs() -> Vec<u32> {
    let mut state = 1u64;
    let mut word = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    let words: Vec<u32> = (0..32).map(|_| word()).collect();
    let mut any: Vec<u32> = (0..32).map(|_| word()).collect();
    let special = [f32::NAN, f32::INFINITY, -f32::INFINITY, 0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, 1e-42, 65519.0];
    any.iter_mut().zip(special).for_each(|(any, x)| *any = x.to_bits());
    let mut moderate = || (word() as f32 / u32::MAX as f32) * 2.0 - 1.0;
    let numbers: Vec<u32> = (0..32).map(|_| moderate().to_bits()).collect();
    let pairs = (0..32 * 8).map(|_| (moderate().to_bits() >> 16) | (moderate().to_bits() & 0xffff_0000));
    words.into_iter().chain(any).chain(numbers).chain(pairs).collect()
}

/// Products by the functions of `hopper.cuh`; the shapes that come out wrong.
fn wrong_products(device: &Device) -> Result<Vec<String>, Box<dyn Error>> {
    let cuda = device.downcast::<Cuda>().ok_or("no CUDA device")?;
    if cuda.info().compute_capability != (9, 0) {
        println!("hopper.cuh: skipped, {cuda} is not of compute capability 9.0");
        return Ok(Vec::new());
    }
    let shapes = product::shapes();
    let failed = |&shape: &_| product::run(device, shape, 0, 1).err().map(|error| format!("{shape:?}: {error}"));
    let wrong: Vec<String> = shapes.iter().filter_map(failed).collect();
    println!("{} of {} products by hopper.cuh exact", shapes.len() - wrong.len(), shapes.len());
    Ok(wrong)
}

fn run(device: &Device) -> Result<Vec<u32>, Box<dyn Error>> {
    let cuda = device.downcast::<Cuda>().ok_or("no CUDA device")?;
    let upload = |words: &[u32]| {
        let words: Vec<i32> = words.iter().map(|&w| w as i32).collect();
        Tensor::from_slice(&words, &[words.len()], device)
    };
    let rows: usize = ROWS.iter().map(|&(_, rows, _)| rows).sum();
    let (out, counters, moved) = (upload(&vec![0; rows * 32])?, upload(&[0; 32])?, upload(&[0; 128])?);
    cuda.kernel(&KERNEL, "intrinsics")
        .write(&out)
        .read(&upload(&inputs())?)
        .write(&counters)
        .write(&moved)
        .threads(32)
        .launch()?;
    Ok(out.to_vec::<i32>()?.into_iter().map(|w| w as u32).collect())
}

/// The functions whose results are not the answers.
fn compare(got: &[u32], answers: &[u32]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut start = 0;
    for &(name, rows, kind) in ROWS {
        let equal = |(&a, &b): (&u32, &u32)| {
            let (x, y) = (f32::from_bits(a), f32::from_bits(b));
            match kind {
                Bits => a == b,
                _ if x.is_nan() || y.is_nan() => x.is_nan() && y.is_nan(),
                Near(most) => (x - y).abs() <= most,
                Within(most) => x == y || (x - y).abs() <= most * x.abs().max(y.abs()) + 1e-37,
            }
        };
        let range = start..start + rows * 32;
        let off = got[range.clone()].iter().zip(&answers[range.clone()]).position(|pair| !equal(pair));
        if let Some(i) = off {
            let (a, b) = (got[start + i], answers[start + i]);
            let (row, lane) = (i / 32, i % 32);
            wrong.push(format!(
                "{name}, result {row}, lane {lane}: {a:#010x} ({:e}), the emulator has {b:#010x} ({:e})",
                f32::from_bits(a),
                f32::from_bits(b)
            ));
        }
        start = range.end;
    }
    wrong
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["record", path] => {
            let bytes: Vec<u8> =
                run(&Cuda::emulated()?.into_device())?.into_iter().flat_map(u32::to_le_bytes).collect();
            std::fs::write(path, bytes)?;
            Ok(())
        }
        ["compare", path] => {
            let bytes = std::fs::read(path)?;
            let answers: Vec<u32> =
                bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let device = Cuda::open(0)?.into_device();
            let got = run(&device)?;
            if got.len() != answers.len() {
                return Err(format!("{path} holds {} words, {} were expected", answers.len(), got.len()).into());
            }
            let mut wrong = compare(&got, &answers);
            println!("{} of {} functions as the emulator has them", ROWS.len() - wrong.len(), ROWS.len());
            wrong.extend(wrong_products(&device)?);
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
        }
        _ => Err("usage: intrinsics record|compare FILE".into()),
    }
}
