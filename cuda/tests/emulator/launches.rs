//! Launches: mistakes of a launcher are errors that name them; results come in the stream's order.

use patchgpt_cuda::{Cuda, KernelSource};
use patchgpt_tensor::{DType, Tensor};

use crate::device;

/// out = factor * x, and out = x + 1 with an entry point of its own.
pub(crate) static SCALE: KernelSource = KernelSource {
    name: "scale",
    text: r#"
#include "prelude.cuh"
KERNEL(scale, 64, f32 *out, const f32 *x, f32 factor, u32 count) {
    u32 i = blockIdx.x * 64 + threadIdx.x;
    if (i < count) out[i] = factor * x[i];
}
KERNEL(grow, 64, f32 *x, u32 count) {
    u32 i = blockIdx.x * 64 + threadIdx.x;
    if (i < count) x[i] += 1;
}
KERNEL(room, 64, f32 *x) {
    DYNAMIC_SHARED(f32, room);
    room[threadIdx.x] = 1;
    x[threadIdx.x] = room[threadIdx.x];
}
"#,
    headers: &[],
};

static BROKEN: KernelSource = KernelSource {
    name: "broken",
    text: "#include \"prelude.cuh\"\nKERNEL(broken, 32, f32 *x) {\n    x[threadIdx.x] = nothing;\n}\n",
    headers: &[],
};

#[test]
fn mistakes_of_a_launcher_are_errors() {
    let device = device();
    let cuda = device.downcast::<Cuda>().expect("CUDA");
    let x = Tensor::zeros(&[64], DType::F32, &device).expect("memory");
    let cpu = Tensor::zeros(&[64], DType::F32, &patchgpt_tensor::Device::cpu().expect("a CPU")).expect("memory");
    let scale = |x: &Tensor| cuda.kernel(&SCALE, "scale").write(x).read(x);
    let errors = [
        (
            scale(&x).value(1f32).threads(64).launch(),
            "takes 4 parameters of [8, 8, 4, 4] bytes, the launcher passes 3 of [8, 8, 4]",
        ),
        (scale(&x).value(1f64).value(64u32).threads(64).launch(), "the launcher passes 4 of [8, 8, 8, 4]"),
        (scale(&x).value(1f32).value(64u32).threads(128).launch(), "128 threads a block; a multiple of 32 up to 64"),
        (scale(&x).value(1f32).value(64u32).threads(33).launch(), "33 threads a block"),
        (scale(&x).value(1f32).value(64u32).threads(64).grid(1, 70_000, 1).launch(), "a grid of 1 x 70000 x 1"),
        (cuda.kernel(&SCALE, "shrink").threads(32).launch(), "no entry point `shrink`"),
        (
            cuda.kernel(&BROKEN, "broken").write(&x).threads(32).launch(),
            "    broken.cu:3 |     x[threadIdx.x] = nothing;",
        ),
        (
            cuda.kernel(&SCALE, "room").write(&x).threads(64).shared(1 << 20).launch(),
            "1048576 bytes of dynamic shared memory",
        ),
        (cuda.kernel(&SCALE, "grow").write(&cpu).value(64u32).threads(64).launch(), "a tensor on cpu"),
    ];
    for (result, part) in errors {
        let message = result.expect_err(part).to_string();
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
    // An empty grid launches nothing, and the device still works.
    scale(&x).value(1f32).value(0u32).threads(64).blocks(0).launch().expect("nothing");
    cuda.kernel(&SCALE, "room").write(&x).threads(64).shared(64 << 10).launch().expect("much shared memory");
    assert_eq!(x.to_vec::<f32>().expect("numbers"), [1.0; 64]);
}

#[test]
fn a_failing_kernel_is_told_by_the_next_call_that_waits() {
    static LOST: KernelSource = KernelSource {
        name: "lost",
        text: "#include \"prelude.cuh\"\nKERNEL(lost, 32, f32 *x) {\n    if (threadIdx.x < 7) sync_block();\n    x[0] = 1;\n}\n",
        headers: &[],
    };
    let device = device();
    let cuda = device.downcast::<Cuda>().expect("CUDA");
    let x = Tensor::zeros(&[64], DType::F32, &device).expect("memory");
    cuda.kernel(&LOST, "lost").write(&x).threads(32).launch().expect("the launch itself");
    let message = device.synchronize().expect_err("a deadlock").to_string();
    assert!(message.contains("kernel lost: ") && message.contains("lost.cu:3"), "{message}");
    device.synchronize().expect("told once");
}
