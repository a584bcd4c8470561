//! The functions of `hopper.cuh`: every shape of product over ragged edges, and planted mistakes in barriers, waits and
//! fences, which schedules and the race checker must notice.

use patchgpt_cuda::Cuda;
use patchgpt_tensor::{DType, Tensor};

use crate::product::{Product, run, shapes};
use crate::{again, device, text};

const PLAIN: Product = Product { columns: 64, major: "K", a_registers: false, rows: 130, depth: 328 };
const REGISTERS: Product = Product { columns: 80, major: "MN", a_registers: true, ..PLAIN };

#[test]
fn products_of_every_shape_are_exact() {
    let device = device();
    let failed = |product| run(&device, product, 0, 1).err().map(|error| format!("{product:?}: {error}"));
    let failures: Vec<String> = shapes().into_iter().filter_map(failed).collect();
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
