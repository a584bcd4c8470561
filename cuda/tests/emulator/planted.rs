//! A kernel with planted mistakes, which schedules, the race checker and the sanitizers must notice.

use patchgpt_cuda::{Cuda, KernelSource};
use patchgpt_tensor::{DType, Device, Tensor};

use crate::{again, device, text};

static PLANTED: KernelSource = KernelSource { name: "planted", text: include_str!("planted.cu"), headers: &[] };

const ROWS: usize = 3;

/// What is expected to notice each mistake of `planted.cu`: schedules alone, the race checker, the sanitizers.
const MISTAKES: &[(u32, &str, [bool; 3])] = &[
    (1, "a wait for too few asynchronous copies", [true, true, false]),
    (2, "no barrier after asynchronous copies", [true, true, false]),
    (3, "uninitialised shared memory", [true, true, false]),
    (4, "no barrier before reading", [true, true, false]),
    (5, "no barrier before overwriting", [true, true, false]),
    (6, "a thread that leaves before a barrier", [true, true, false]),
    (7, "threads at different barriers", [true, true, false]),
    (8, "a mask that names lanes that do not come", [true, true, false]),
    (9, "an unaligned access", [true, true, true]),
    (10, "a write beyond the tensor", [true, true, true]),
    (11, "a read beyond a shared array", [false, true, true]),
    (12, "a race within a block", [false, true, false]),
    (13, "a race between blocks", [false, true, false]),
    (14, "uninitialised device memory", [false, true, false]),
    (15, "an index beyond a thread's own array", [false, false, true]),
];

/// Runs the kernel `launches` times; says what was wrong, if anything.
fn run(device: &Device, mistake: u32, launches: usize) -> Result<(), String> {
    let cuda = device.downcast::<Cuda>().ok_or("no CUDA device")?;
    let values: Vec<f32> = (0..ROWS * 256).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
    let x = Tensor::from_slice(&values, &[ROWS, 256], device).map_err(|e| e.to_string())?;
    for _ in 0..launches {
        let out = Tensor::zeros(&[ROWS, 256], DType::F32, device).map_err(|e| e.to_string())?;
        let scratch = cuda.workspace(ROWS * 128 * 4).map_err(|e| e.to_string())?;
        cuda.kernel(&PLANTED, "planted")
            .define("MISTAKE", mistake)
            .write(&out)
            .read(&x)
            .workspace(&scratch)
            .value(ROWS as u32)
            .blocks(ROWS)
            .threads(128)
            .launch()
            .map_err(|e| e.to_string())?;
        let got = out.to_vec::<f32>().map_err(|e| e.to_string())?;
        for (r, row) in values.chunks(256).enumerate() {
            let rstd = 1.0 / (row.iter().map(|v| v * v).sum::<f32>() / 256.0).sqrt();
            for i in 0..256 {
                let expected = row[i / 128 * 128 + (i % 128 + 1) % 128] * rstd;
                let found = got[r * 256 + i];
                // NaN is wrong too.
                if (found - expected).abs().partial_cmp(&1e-5) != Some(std::cmp::Ordering::Less) {
                    return Err(format!("row {r}, element {i}: {found} instead of {expected}"));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn schedules_expose_mistakes() {
    let device = device();
    run(&device, 0, 40).expect("the kernel without a mistake");
    let missed: Vec<&str> = MISTAKES
        .iter()
        .filter(|(_, _, [schedules, ..])| *schedules)
        .filter(|&&(number, ..)| run(&device, number, 20).is_ok())
        .map(|&(_, name, _)| name)
        .collect();
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

#[test]
fn the_race_checker_finds_mistakes() {
    let output = again("planted::under_the_race_checker", "races", &[]);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    for part in ["race: ", "a read after a write", "two writes", "uninitialised memory", "out of bounds", "planted.cu:"]
    {
        assert!(text.contains(part), "no message says `{part}`:\n{text}");
    }
}

#[test]
#[ignore = "run by the_race_checker_finds_mistakes in a process of its own"]
fn under_the_race_checker() {
    let device = device();
    run(&device, 0, 5).expect("the kernel without a mistake");
    let mut missed = Vec::new();
    for &(number, name, [_, checker, _]) in MISTAKES {
        // One launch has to do: the checker does not depend on the schedule.
        match run(&device, number, 1) {
            Err(message) => println!("{name}: {message}"),
            Ok(()) if checker => missed.push(name),
            Ok(()) => {}
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}

#[test]
fn the_sanitizers_find_mistakes() {
    let clean = again("planted::under_the_sanitizers", "address", &[("PATCHGPT_TEST_MISTAKE", "0".into())]);
    assert!(clean.status.success(), "{}", text(&clean));
    for &(number, name, [_, _, sanitizers]) in MISTAKES {
        if sanitizers {
            let output =
                again("planted::under_the_sanitizers", "address", &[("PATCHGPT_TEST_MISTAKE", number.to_string())]);
            assert!(!output.status.success(), "not noticed: {name}");
        }
    }
}

#[test]
#[ignore = "run by the_sanitizers_find_mistakes in processes of its own"]
fn under_the_sanitizers() {
    let number = std::env::var("PATCHGPT_TEST_MISTAKE").expect("a number").parse().expect("a number");
    run(&device(), number, 1).expect("a kernel without a mistake");
}
