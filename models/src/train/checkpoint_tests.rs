//! Checkpoints: what is written comes back to the bit, and no damage goes unseen.

use patchgpt_tensor::{DType, Device};

use super::*;
use crate::optimizer::AdamWSettings;
use crate::parameters::{Init, ParameterSpec};

fn parameters(dtype: DType, seed: u64) -> Parameters {
    let specs = vec![
        ParameterSpec::new("matrix", &[7, 9], Init::Normal { std: 1.0 }),
        ParameterSpec::new("bias", &[5], Init::Normal { std: 1.0 }),
    ];
    Parameters::build(specs, dtype, &Device::cpu_with_threads(1).unwrap(), seed).unwrap()
}

/// An optimizer whose moments are not zero.
fn optimizer(parameters: &Parameters) -> AdamW {
    let mut optimizer = AdamW::new(parameters, AdamWSettings::default()).unwrap();
    parameters.gradients().copy_(parameters.values()).unwrap();
    optimizer.step(parameters, 1e-2, Some(1.0)).unwrap();
    optimizer
}

fn state(step: u64) -> State {
    State {
        step,
        optimizer_steps: 1,
        seconds: 0.1 + step as f64 / 3.0,
        seed: 9,
        initial: Evaluation::from_sum(5.5 * 77.0, 77, 91).unwrap().into(),
        config: "c".repeat(64),
        data: ["d".repeat(64), "e".repeat(64)],
    }
}

fn write(folder: &Path, steps: &[u64]) -> Checkpoints {
    let checkpoints = Checkpoints::new(folder.to_owned());
    let parameters = parameters(DType::F32, 1);
    let optimizer = optimizer(&parameters);
    for &step in steps {
        checkpoints.write(&state(step), &parameters, &optimizer).unwrap();
    }
    checkpoints
}

#[test]
fn what_is_written_comes_back_to_the_bit() {
    for dtype in [DType::F32, DType::F64] {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path().join("checkpoints"));
        assert!(checkpoints.newest(|_| ()).unwrap().is_none());
        let parameters_before = parameters(dtype, 1);
        let before = optimizer(&parameters_before);
        checkpoints.write(&state(7), &parameters_before, &before).unwrap();

        let parameters_after = parameters(dtype, 2);
        let mut after = AdamW::new(&parameters_after, AdamWSettings::default()).unwrap();
        let checkpoint = checkpoints.newest(|_| ()).unwrap().unwrap();
        assert_eq!(checkpoint.state, state(7));
        checkpoint.restore(&parameters_after, &mut after).unwrap();
        let pairs = [
            (parameters_before.values(), parameters_after.values()),
            (before.first_moment(), after.first_moment()),
            (before.second_moment(), after.second_moment()),
        ];
        for (ours, theirs) in pairs {
            let values = ours.to_f64_vec().unwrap();
            assert!(values.iter().any(|&value| value != 0.0));
            assert_eq!(values, theirs.to_f64_vec().unwrap());
        }
        assert_eq!(after.steps(), 1);
    }
}

#[test]
fn the_newest_two_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("step-0000000001.safetensors.partial"), "torn").unwrap();
    std::fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let checkpoints = write(folder.path(), &[5, 90, 100, 10_000_000_000]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "two checkpoints and the notes");
    let names: Vec<_> = checkpoints.paths(EXTENSION).unwrap();
    assert_eq!(names.len(), 2);
    assert!(names[0].ends_with("step-0000000100.safetensors"));
    assert_eq!(checkpoints.newest(|_| ()).unwrap().unwrap().state.step, 10_000_000_000);
}

#[test]
fn every_damage_is_seen_and_an_older_checkpoint_takes_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = write(folder.path(), &[5, 10]);
    let newest = checkpoints.paths(EXTENSION).unwrap().remove(1);
    let whole = std::fs::read(&newest).unwrap();
    let mut damaged: Vec<Vec<u8>> =
        [0, 1, 8, 100, whole.len() / 2, whole.len() - 1].map(|length| whole[..length].to_vec()).into_iter().collect();
    for position in (8..whole.len()).step_by(whole.len() / 40) {
        let mut flipped = whole.clone();
        flipped[position] ^= 1;
        damaged.push(flipped);
    }
    damaged.push(b"something else".to_vec());
    for content in damaged {
        std::fs::write(&newest, &content).unwrap();
        let mut told = Vec::new();
        let found = checkpoints.newest(|sentence| told.push(sentence)).unwrap().unwrap();
        assert_eq!(found.state.step, 5, "{} bytes", content.len());
        assert!(told.len() == 1 && told[0].contains("step-0000000010") && told[0].contains("of step 5"), "{told:?}");
    }
    std::fs::remove_file(&checkpoints.paths(EXTENSION).unwrap()[0]).unwrap();
    let error = checkpoints.newest(|_| ()).unwrap_err();
    assert!(error.to_string().contains("step-0000000010") && error.exit_code() == 1, "{error}");
}

#[test]
fn a_checkpoint_of_another_model_or_dtype_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = write(folder.path(), &[5]).newest(|_| ()).unwrap().unwrap();
    let other = parameters(DType::F64, 1);
    let mut moments = AdamW::new(&other, AdamWSettings::default()).unwrap();
    let before = other.values().to_f64_vec().unwrap();
    let error = checkpoint.restore(&other, &mut moments).unwrap_err();
    assert!(error.to_string().contains("another run"), "{error}");
    assert_eq!(other.values().to_f64_vec().unwrap(), before, "nothing was taken over");
}
