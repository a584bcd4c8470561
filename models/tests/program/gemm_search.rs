//! The timed search for the algorithms of products: what a run keeps of it, and what a continued run makes of that.

use patchgpt_models::train::metrics::Record;
use serde_json::Value;

use crate::run::{Finished, Place, timeless};

const FLAGS: [&str; 6] =
    ["--device=cuda:emulated", "--gemm-search", "--seq-len=8", "--batch-size=2", "--steps=6", "--warmup=1"];

/// Metrics and weights of a run.
fn result(place: &Place) -> (Vec<Record>, Vec<u8>) {
    (timeless(&place.metrics("run")), place.read("run/model/model.safetensors"))
}

/// Takes the run back to its checkpoint of step 3, with this file of choices, and continues it.
fn resume(place: &Place, choices: Option<&str>) -> Finished {
    let file = place.path("run/gemm.json");
    match choices {
        Some(choices) => std::fs::write(file, choices).unwrap(),
        None => std::fs::remove_file(file).unwrap(),
    }
    let _ = std::fs::remove_file(place.path("run/checkpoints/step-0000000006.safetensors"));
    place.run(&["train", "--resume", "--out", "run"])
}

#[test]
fn a_continued_run_uses_the_choices_of_its_search() {
    let place = Place::new();
    place.train("run", &FLAGS).ok();
    let whole = result(&place);
    let text = String::from_utf8(place.read("run/gemm.json")).unwrap();
    let choices: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (choices["cublaslt"].as_u64(), choices["algorithms"].as_object().unwrap().len() > 10),
        (Some(130000), true)
    );
    assert!(choices["device"].as_str().unwrap().starts_with("patchgpt emulator ("), "{text}");

    resume(&place, Some(&text)).ok();
    assert!(result(&place) == whole, "the same choices give the same bits");
    assert_eq!(String::from_utf8(place.read("run/gemm.json")).unwrap(), text, "nothing was searched again");

    // The second word of an emulated algorithm is the number of parts that k is cut into.
    let mut other = choices.clone();
    for algorithm in other["algorithms"].as_object_mut().unwrap().values_mut() {
        let digits = algorithm.as_str().unwrap();
        let parts = if &digits[16..32] == "0000000000000001" { 2 } else { 1 };
        *algorithm = format!("{}{parts:016x}{}", &digits[..16], &digits[32..]).into();
    }
    resume(&place, Some(&other.to_string())).ok();
    assert!(result(&place) != whole, "other choices give other bits");

    let mut newer = choices.clone();
    newer["cublaslt"] = 130200.into();
    let parts = ["gemm.json", "cuBLASLt 13.2.0 on patchgpt emulator", "here is cuBLASLt 13.0.0", "remove the file"];
    resume(&place, Some(&newer.to_string())).fails(1, &parts);
    resume(&place, Some("{\"cublaslt\": 1}")).fails(1, &["gemm.json", "missing field", "Put the run's own file back"]);

    let said = resume(&place, None).ok();
    assert!(said.err.contains("gemm.json") && said.err.contains("searched anew"), "{}", said.err);
    assert!(place.path("run/gemm.json").exists());
}

#[test]
fn a_run_without_a_search_keeps_no_choices_and_cannot_begin_one() {
    let place = Place::new();
    let flags = ["--device=cuda:emulated", "--seq-len=8", "--batch-size=2", "--steps=2", "--warmup=1"];
    place.train("run", &flags).ok();
    assert!(!place.path("run/gemm.json").exists());
    place.run(&["train", "--resume", "--out", "run", "--gemm-search"]).fails(2, &["device.gemm_search", "not set"]);
    place
        .run(&["train", "--out", "other", "--gemm-search"])
        .fails(2, &["device.gemm_search", "set device.device to cuda"]);
}
