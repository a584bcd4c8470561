//! Reads the fixtures, and compares with them.

use std::path::PathBuf;

use patchgpt_models::Gpt;
use patchgpt_models::hub::{self, HubTensor};
use patchgpt_tensor::{DType, Device, Tensor};
use patchgpt_tests::array::Array;
use patchgpt_tests::tolerance::mismatch;
pub(crate) use patchgpt_tests::tolerance::whole_model as tolerance;
use safetensors::{Dtype, SafeTensors};

/// A path below the folder of the fixtures.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("parity/fixtures").join(name)
}

/// The model of a folder of fixtures.
pub(crate) fn model(name: &str, dtype: DType) -> Gpt {
    hub::load(&path(name), dtype, &Device::cpu().unwrap()).unwrap()
}

/// A safetensors file of the fixtures.
pub(crate) struct Fixture(Vec<u8>);

impl Fixture {
    pub(crate) fn open(name: &str) -> Fixture {
        Fixture(std::fs::read(path(name)).unwrap())
    }

    /// A floating-point tensor as f64.
    pub(crate) fn array(&self, name: &str) -> Array {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let bytes = tensor.data();
        let data = match tensor.dtype() {
            Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
            other => panic!("{name} is {other:?}"),
        };
        Array { shape: tensor.shape().to_vec(), data }
    }

    /// A 0-d tensor.
    pub(crate) fn scalar(&self, name: &str) -> f64 {
        self.array(name).data[0]
    }

    /// An i32 tensor: its shape and elements.
    pub(crate) fn ids(&self, name: &str) -> (Vec<usize>, Vec<i32>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tensor.dtype(), Dtype::I32, "{name}");
        let data = tensor.data().as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect();
        (tensor.shape().to_vec(), data)
    }
}

/// A tensor on the host.
pub(crate) fn array(tensor: &Tensor) -> Array {
    Array { shape: tensor.shape().to_vec(), data: tensor.to_f64_vec().unwrap() }
}

pub(crate) fn assert_close(what: &str, got: &Array, expected: &Array, relative: f64) {
    if let Some(difference) = mismatch(got, expected, relative) {
        panic!("{what}: {difference}");
    }
}

pub(crate) fn assert_scalar(what: &str, got: f64, expected: f64, relative: f64) {
    assert!((got - expected).abs() <= relative * expected.abs(), "{what}: {got} instead of {expected}");
}

/// Values of a tensor of the published layout.
pub(crate) fn value(gpt: &Gpt, tensor: &HubTensor) -> Array {
    let parameter = gpt.parameters().var(&tensor.parameter).unwrap();
    array(&tensor.view(parameter.tensor()).unwrap())
}

/// Gradient of a tensor of the published layout.
pub(crate) fn gradient(gpt: &Gpt, tensor: &HubTensor) -> Array {
    let parameter = gpt.parameters().get(&tensor.parameter).unwrap();
    let gradient = parameter.view(gpt.parameters().gradients()).unwrap();
    array(&tensor.view(&gradient).unwrap())
}
