//! The CUDA device under test.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use patchgpt_cuda::{Cuda, FAMILIES};
use patchgpt_tensor::Device;

/// The emulated device, or the card whose number `PATCHGPT_TEST_CARD` names; one for all tests of a program, so that each kernel is compiled once.
///
/// # Panics
/// If it cannot be opened.
pub fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| open().into_device())
}

/// The same device opened once more, with a stream and kernels of its own: for tests that record, beside which nobody may use the stream.
///
/// # Panics
/// If it cannot be opened.
pub fn own_device() -> Device {
    open().into_device()
}

/// The same device with a variant of a kernel family, such as `attention=sm80`.
///
/// # Panics
/// If it cannot be opened, or there is no such variant.
pub fn device_with(kernel: &str) -> &'static Device {
    static DEVICES: Mutex<Option<HashMap<String, &'static Device>>> = Mutex::new(None);
    let mut devices = DEVICES.lock().unwrap_or_else(|e| e.into_inner());
    let open = || open().with_kernel(kernel).expect("a variant that there is").into_device();
    devices.get_or_insert_default().entry(kernel.into()).or_insert_with(|| Box::leak(Box::new(open())))
}

/// The choice of each variant of a kernel family, and the device with it.
///
/// # Panics
/// As [`device_with`]; if there is no such family.
pub fn variants(family: &str) -> impl Iterator<Item = (String, &'static Device)> {
    let family = FAMILIES.iter().find(|known| known.name == family).expect("a family of kernels");
    family.variants.iter().map(|(variant, _)| {
        let choice = format!("{}={variant}", family.name);
        let device = device_with(&choice);
        (choice, device)
    })
}

fn open() -> Cuda {
    let cuda = match std::env::var("PATCHGPT_TEST_CARD") {
        Ok(number) => Cuda::open(number.parse().expect("PATCHGPT_TEST_CARD is the number of a card")),
        Err(_) => Cuda::emulated(),
    };
    cuda.expect("the CUDA device under test")
}
