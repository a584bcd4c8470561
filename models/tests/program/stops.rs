//! The library without the program: a run stopped after any step, the switch between stages included, and continued, is the run
//! that was never stopped.

use std::path::Path;

use patchgpt_models::config::{Config, Layers};
use patchgpt_models::train::metrics::Record;
use patchgpt_models::train::{self, Observer, Outcome, Start};

use crate::run::{Place, timeless};

/// Asks to stop after so many steps.
struct StopAfter(u64);

impl Observer for StopAfter {
    fn step(&mut self, _record: &Record) {
        self.0 -= 1;
    }

    fn stop_requested(&self) -> bool {
        self.0 == 0
    }
}

fn config(text: &Path, assignments: &[&str]) -> Config {
    let small = [
        "model.layers=1",
        "model.hidden=16",
        "model.ffn=24",
        "train.seq_len=16",
        "train.batch_size=5",
        "train.steps=9",
        "train.step_fraction=0.4",
        "train.evaluate_every=4",
        "train.evaluation_windows=4",
        "device.threads=1",
    ];
    let mut layers = Layers::new().flag("--data", "data.path", text.to_str().unwrap()).unwrap();
    for assignment in small.iter().chain(assignments) {
        layers = layers.set(assignment).unwrap();
    }
    Config::resolve(layers, |_| unreachable!("no tokenizer file")).unwrap()
}

/// The folder of documents that the texts are read from.
fn documents(place: &Place) -> std::path::PathBuf {
    let folder = place.path("documents");
    std::fs::create_dir(&folder).unwrap();
    for (number, length) in [3000, 70, 5000, 900, 4000, 2500].into_iter().enumerate() {
        std::fs::write(folder.join(format!("{number}.txt")), crate::run::text(length)).unwrap();
    }
    folder
}

fn start(resume: bool) -> Start<'static> {
    Start { resume, dataset: None }
}

fn assert_same(place: &Place, whole: &Outcome, parts: &Outcome, folder: &str, case: &str) {
    assert_eq!(timeless(&whole.records), timeless(&parts.records), "{case}");
    assert_eq!(whole.evaluation, parts.evaluation, "{case}");
    assert_eq!(whole.initial, parts.initial, "{case}");
    assert_eq!(whole.sample, parts.sample, "{case}");
    let weights = |run: &str| place.read(&format!("{run}/model/model.safetensors"));
    assert_eq!(weights("whole"), weights(folder), "{case}");
}

#[test]
fn a_run_stopped_around_a_switch_or_an_end_continues_to_the_bit() {
    let cases: [&[&str]; 4] = [
        &["train.optimizer_at_switch=reset", "train.schedule=rewarm", "train.warmup=2"],
        &["train.optimizer_at_switch=carry", "train.micro_batch=2", "data.documents=respect"],
        &["train.patch_sizes=[4, 2]", "train.schedule=wsd", "train.optimizer_at_switch=reset"],
        &["train.bag=input", "train.target_weights=uniform", "device.dtype=f64"],
    ];
    for case in cases {
        let place = Place::new();
        let config = config(&documents(&place), case);
        let whole = train::run(&config, &place.path("whole"), start(false), &mut ()).unwrap();
        assert!(whole.is_finished() && whole.plan.stages.len() >= 2);
        for stop in [0, 1, 3, 4, 5, 8, 9] {
            let (folder, name) = (format!("stop-{stop}"), format!("{case:?}, stopped after {stop}"));
            let path = place.path(&folder);
            let stopped = train::run(&config, &path, start(false), &mut StopAfter(stop)).unwrap();
            assert_eq!((stopped.steps, stopped.is_finished()), (stop, stop == 9), "{name}");
            assert_eq!(stopped.records.len() as u64, stop, "{name}");
            let parts = train::run(&config, &path, start(true), &mut ()).unwrap();
            assert_same(&place, &whole, &parts, &folder, &name);
        }
    }
}

#[test]
fn one_step_at_a_time_is_the_same_run() {
    let place = Place::new();
    let config = config(&documents(&place), &["train.optimizer_at_switch=reset"]);
    let whole = train::run(&config, &place.path("whole"), start(false), &mut ()).unwrap();
    let path = place.path("parts");
    let mut parts = train::run(&config, &path, start(false), &mut StopAfter(1)).unwrap();
    while !parts.is_finished() {
        parts = train::run(&config, &path, start(true), &mut StopAfter(1)).unwrap();
    }
    assert_same(&place, &whole, &parts, "parts", "one step at a time");
}
