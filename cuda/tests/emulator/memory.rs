//! Memory: uploads in order from host memory that is reused at once, frees in the stream's order, and what is said when there is none left.

use patchgpt_cuda::Cuda;
use patchgpt_tensor::{DType, Tensor};

use crate::launches::SCALE;
use crate::{again, device, text};

#[test]
fn uploads_do_not_depend_on_when_they_happen() {
    let device = device();
    let cuda = device.downcast::<Cuda>().expect("CUDA");
    let sum = Tensor::zeros(&[1000], DType::F32, &device).expect("memory");
    let mut host = vec![0f32; 1000];
    let expected: f32 = (0..50).map(|i| 2.0 * i as f32).sum();
    for i in 0..50 {
        host.fill(i as f32);
        // Temporary tensors are dropped while kernels that read them are still to run.
        let x = Tensor::from_slice(&host, &[1000], &device).expect("an upload");
        let y = Tensor::empty(&[1000], DType::F32, &device).expect("memory");
        let launch = cuda.kernel(&SCALE, "scale").write(&y).read(&x).value(2f32).value(1000u32);
        launch.blocks(16).threads(64).launch().expect("a launch");
        sum.add_(&y).expect("a sum");
    }
    assert_eq!(sum.to_vec::<f32>().expect("numbers"), vec![expected; 1000]);
}

#[test]
fn tensors_without_elements_are_no_trouble() {
    let device = device();
    let x = Tensor::zeros(&[0, 3], DType::F32, &device).expect("nothing");
    assert!(x.matmul(&Tensor::zeros(&[3, 2], DType::F32, &device).expect("zeros")).expect("nothing").is_empty());
    assert!(x.to_vec::<f32>().expect("nothing").is_empty());
}

#[test]
fn out_of_memory_says_what_holds_it_and_what_lowers_it() {
    let output = again("memory::with_a_mebibyte", "", &[("PATCHGPT_EMULATOR_MEMORY", (1 << 20).to_string())]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
#[ignore = "run by out_of_memory_says_what_holds_it_and_what_lowers_it"]
fn with_a_mebibyte() {
    let device = device();
    let held: Vec<Tensor> = (0..3).map(|_| Tensor::zeros(&[50_000], DType::F32, &device).expect("memory")).collect();
    let message = Tensor::zeros(&[150_000], DType::F32, &device).expect_err("too much").to_string();
    for part in ["585.9 KiB asked for", "3 x 195.3 KiB", "of the device's 1.0 MiB free", "smaller batch"] {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    // What is freed can be had again.
    drop(held);
    Tensor::zeros(&[150_000], DType::F32, &device).expect("memory");
}
