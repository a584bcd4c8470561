//! The functions of `hopper.cuh`: every shape of product over ragged edges, and planted mistakes in barriers, waits and
//! fences, which schedules and the race checker must notice.

use patchgpt_cuda::{Cuda, KernelSource};
use patchgpt_tensor::{DType, Device, Tensor};

use crate::{again, device, text};

static HOPPER: KernelSource = KernelSource {
    name: "hopper",
    text: include_str!("hopper.cu"),
    headers: &[("hopper.cuh", include_str!("../../kernels/hopper.cuh"))],
};

/// One product: out [rows, columns] = 2 a b + bias over `depth`.
#[derive(Clone, Copy, Debug)]
struct Product {
    columns: usize,
    /// Which dimension of b is contiguous: `K` or `MN`.
    major: &'static str,
    a_registers: bool,
    rows: usize,
    depth: usize,
}

const PLAIN: Product = Product { columns: 64, major: "K", a_registers: false, rows: 130, depth: 328 };
const REGISTERS: Product = Product { columns: 80, major: "MN", a_registers: true, ..PLAIN };

/// Small numbers that bf16 holds, so that products and sums are exact.
fn number(i: usize) -> f32 {
    ((i * 37 + i / 7 * 11) % 17) as f32 - 8.0
}

fn run(device: &Device, product: Product, mistake: u32, launches: usize) -> Result<(), String> {
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

#[test]
fn products_of_every_shape_are_exact() {
    let device = device();
    let mut failures = Vec::new();
    for columns in [64, 80, 96, 112, 128] {
        for (major, a_registers) in [("K", false), ("K", true), ("MN", false), ("MN", true)] {
            // One step, two, and more than the ring has stages; rows and depth that tiles do not divide.
            for (rows, depth) in [(128, 64), (1, 8), (130, 328)] {
                let product = Product { columns, major, a_registers, rows, depth };
                failures.extend(run(&device, product, 0, 1).err().map(|e| format!("{product:?}: {e}")));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Mistakes of `hopper.cu`, where they are made, and whether schedules alone notice them; the race checker notices all.
const MISTAKES: &[(u32, &str, Product, bool)] = &[
    (1, "no wait for the copies", PLAIN, true),
    (2, "no wait for the stage to be free", PLAIN, true),
    (3, "a stage given back while products read it", PLAIN, true),
    (4, "accumulators that no wait names", PLAIN, true),
    (5, "a wait for too few groups", PLAIN, true),
    (6, "no fence between ordinary stores and products", PLAIN, false),
    (7, "no barrier after stores that others' products read", PLAIN, false),
    (8, "no fence after the initialisation of mbarriers", PLAIN, true),
    (9, "a wait for the wrong parity", PLAIN, true),
    (10, "too few bytes expected", PLAIN, true),
    (11, "registers that no fence hands over", PLAIN, true),
    (12, "more registers than there are", PLAIN, true),
    (13, "a stage given back before other warps are done", PLAIN, true),
    (14, "a copy to an address that the swizzle does not allow", PLAIN, true),
    (15, "an operand in registers overwritten while products read it", REGISTERS, true),
    (16, "no wait for a bulk copy", PLAIN, false),
    (17, "an mbarrier of too many arrivals", PLAIN, true),
];

#[test]
fn schedules_expose_mistakes() {
    let device = device();
    for product in [PLAIN, REGISTERS] {
        run(&device, product, 0, 20).expect("the kernel without a mistake");
    }
    let noticed_by_schedules = MISTAKES.iter().filter(|(.., schedules)| *schedules);
    let missed: Vec<&str> = noticed_by_schedules
        .filter(|&&(number, _, product, _)| run(&device, product, number, 20).is_ok())
        .map(|&(_, name, ..)| name)
        .collect();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

#[test]
fn the_race_checker_finds_mistakes() {
    let output = again("hopper::under_the_race_checker", "races", &[]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for part in
        ["without a fence_async", "without a wait for the mbarrier", "which a product under way reads", "race: "]
    {
        assert!(text.contains(part), "no message says `{part}`:\n{text}");
    }
}

#[test]
#[ignore = "run by the_race_checker_finds_mistakes in a process of its own"]
fn under_the_race_checker() {
    let device = device();
    for product in [PLAIN, REGISTERS] {
        run(&device, product, 0, 3).expect("the kernel without a mistake");
    }
    let mut missed = Vec::new();
    for &(number, name, product, _) in MISTAKES {
        match run(&device, product, number, 4) {
            Err(message) => println!("{name}: {message}"),
            Ok(()) => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

#[test]
fn tensor_maps_are_of_tensors_that_the_copy_engine_takes() {
    let device = device();
    let cuda = device.downcast::<Cuda>().expect("CUDA");
    let x = Tensor::zeros(&[4, 32, 72], DType::BF16, &device).expect("memory");
    cuda.tensor_map(&x, &[1, 32, 64]).expect("a map");
    let part = |d, from, length| x.narrow(d, from, length).expect("a part");
    cuda.tensor_map(&part(2, 8, 40), &[1, 32, 32]).expect("a map of a part");
    let repeated = part(0, 0, 1).broadcast_to(&[4, 32, 72]).expect("a view");
    let single = Tensor::zeros(&[32, 64], DType::F32, &device).expect("memory");
    for (what, x, shape) in [
        ("an address between multiples of 16 bytes", &part(2, 4, 8), vec![1, 32, 8]),
        ("a dimension that is repeated", &repeated, vec![1, 32, 64]),
        ("other elements", &single, vec![32, 64]),
        ("a box of another rank", &x, vec![32, 64]),
        ("rows longer than the swizzle", &x, vec![1, 32, 72]),
        ("a box of too many rows", &x, vec![1, 257, 64]),
        ("rows of no whole number of 16 bytes", &x, vec![1, 32, 12]),
    ] {
        assert!(cuda.tensor_map(x, &shape).is_err(), "{what}");
    }
}

#[test]
fn the_emulator_poses_as_an_older_device() {
    for (capability, expected) in [("8.0", "(8, 0) false"), ("9.0", "(9, 0) true"), ("7.5", "expected 8.0 or 9.0")] {
        let output = again("hopper::posing", "", &[("PATCHGPT_EMULATOR_CAPABILITY", capability.into())]);
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
}

#[test]
#[ignore = "run by the_emulator_poses_as_an_older_device"]
fn posing() {
    match Cuda::emulated() {
        Ok(cuda) => {
            let capability = cuda.info().compute_capability;
            let device = cuda.into_device();
            let x = Tensor::zeros(&[32, 64], DType::BF16, &device).expect("memory");
            println!("{capability:?} {}", device.downcast::<Cuda>().expect("CUDA").mappable(&x));
        }
        Err(error) => println!("{error}"),
    }
}
