//! The CUDA device under test.

use std::sync::OnceLock;

use patchgpt_cuda::Cuda;
use patchgpt_tensor::Device;

/// The emulated device, or the card whose number `PATCHGPT_TEST_CARD` names; one for all tests of a program, so that each kernel is compiled once.
///
/// # Panics
/// If it cannot be opened.
pub fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let cuda = match std::env::var("PATCHGPT_TEST_CARD") {
            Ok(number) => Cuda::open(number.parse().expect("PATCHGPT_TEST_CARD is the number of a card")),
            Err(_) => Cuda::emulated(),
        };
        cuda.expect("the CUDA device under test").into_device()
    })
}
