//! What surrounds the process: no compiler, no driver, kernels from a folder, several processes with one cache.

use patchgpt_cuda::Cuda;
use patchgpt_tensor::{DType, Tensor};

use crate::launches::SCALE;
use crate::{again, command, device, text};

/// 2 * 1.5, by the kernel as it is found.
fn twice() -> f32 {
    let device = device();
    let cuda = device.downcast::<Cuda>().expect("CUDA");
    let x = Tensor::full(&[1], 1.5, DType::F32, &device).expect("memory");
    let launch = cuda.kernel(&SCALE, "scale").write(&x).read(&x).value(2f32).value(1u32);
    launch.threads(64).launch().expect("a launch");
    x.to_vec::<f32>().expect("a number")[0]
}

#[test]
fn without_a_compiler_the_emulator_says_what_to_install() {
    let output = again("surroundings::no_compiler", "", &[("CXX", "no-such-compiler".into())]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
#[ignore = "run by without_a_compiler_the_emulator_says_what_to_install"]
fn no_compiler() {
    let message = Cuda::emulated().expect_err("no compiler").to_string();
    for part in ["no-such-compiler", "install g++"] {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn cards_and_libraries_are_looked_for_without_a_panic() {
    let output = again("surroundings::a_card", "", &[]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
#[ignore = "run by cards_and_libraries_are_looked_for_without_a_panic"]
fn a_card() {
    let found = patchgpt_cuda::probe();
    match (&found.devices, Cuda::open(0)) {
        (Ok(devices), Ok(cuda)) => assert!(devices.contains(cuda.info())),
        (Ok(devices), Err(error)) => println!("{devices:?}: {error}"),
        (Err(error), Ok(_)) => panic!("a card opens that is not found: {error}"),
        (Err(missing), Err(error)) => assert_eq!(missing.to_string(), error.to_string()),
    }
    // A process that has asked for a card does not get the emulator.
    assert!(Cuda::emulated().expect_err("both").to_string().contains("never both"));
}

#[test]
fn kernels_of_a_folder_replace_the_embedded_ones() {
    let folder = tempfile::tempdir().expect("a folder");
    let text_of = |factor: &str| SCALE.text.replace("factor * x[i]", factor);
    for (factor, expected) in [("factor * x[i] + 1", "4"), ("factor * x[i] + 2", "5")] {
        std::fs::write(folder.path().join("scale.cu"), text_of(factor)).expect("a file");
        let variables =
            [("PATCHGPT_KERNEL_DIR", folder.path().display().to_string()), ("PATCHGPT_TEST_EXPECTED", expected.into())];
        let output = again("surroundings::expected", "", &variables);
        assert!(output.status.success(), "{}", text(&output));
    }
    assert_eq!(twice(), 3.0);
}

#[test]
#[ignore = "run by others with variables of their own"]
fn expected() {
    let expected: f32 = std::env::var("PATCHGPT_TEST_EXPECTED").expect("a number").parse().expect("a number");
    assert_eq!(twice(), expected);
}

#[test]
fn processes_share_a_cache() {
    device();
    let folder = tempfile::tempdir().expect("a folder");
    // The emulator itself need not be built again.
    let user = std::env::var_os("PATCHGPT_CACHE_DIR").map(std::path::PathBuf::from).or_else(|| {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
        cache
            .or_else(|| Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .map(|c| c.join("patchgpt"))
    });
    for entry in std::fs::read_dir(user.expect("a cache")).expect("a cache").flatten() {
        if entry.file_name().to_string_lossy().starts_with("emulator-") {
            std::os::unix::fs::symlink(entry.path(), folder.path().join(entry.file_name())).expect("a link");
        }
    }
    let variables =
        [("PATCHGPT_CACHE_DIR", folder.path().display().to_string()), ("PATCHGPT_TEST_EXPECTED", "3".to_string())];
    let children: Vec<_> = (0..3)
        .map(|_| {
            let mut child = command("surroundings::expected", "", &variables);
            child.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("a process")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().expect("its end");
        assert!(output.status.success(), "{}", text(&output));
    }
    let names: Vec<String> = std::fs::read_dir(folder.path().join("kernels"))
        .expect("kernels")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(names.iter().filter(|n| n.starts_with("scale-")).count(), 1, "{names:?}");
    assert!(names.iter().all(|n| n.ends_with(".cubin")), "{names:?}");
}
