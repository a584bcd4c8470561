//! The devices of the program: what it lists, and training on the emulated CUDA device beside the CPU.

use crate::run::{Finished, Place, SMALL, timeless};

#[test]
fn devices_are_listed_or_what_is_missing_for_them() {
    let listed = Place::new().run(&["devices"]).ok().out;
    for part in ["cpu  ", "cuda  ", "cuda:emulated  ", "libcuda", "libnvrtc", "libcublas"] {
        assert!(listed.contains(part), "`{part}` is not in: {listed}");
    }
}

#[test]
fn the_emulated_device_follows_the_cpu() {
    let place = Place::new();
    let short = ["--steps=4", "--set=train.evaluation_windows=1", "--warmup=1"];
    let losses = |out: &str, device: &str| -> Vec<f64> {
        let finished = place.train(out, &[&short[..], &["--device", device]].concat()).ok();
        assert_eq!(finished.err.contains("slower than --device cpu"), device == "cuda:emulated", "{}", finished.err);
        place.metrics(out).iter().map(|record| record.loss).collect()
    };
    let (cpu, emulated) = (losses("cpu", "cpu"), losses("emulated", "cuda:emulated"));
    assert_eq!((cpu.len(), emulated.len()), (4, 4));
    for (c, e) in cpu.iter().zip(&emulated) {
        assert!((c - e).abs() <= 2e-4 * c, "{emulated:?} instead of {cpu:?}");
    }
    // A run of one device is evaluated on another.
    let on = |device: &str| place.run(&["eval", "emulated", "--device", device, "--windows=1", "--json"]).ok().out;
    assert!(on("cpu").contains("loss") && on("cuda:emulated").contains("loss"));
}

#[test]
fn a_device_without_memory_for_a_step_says_what_holds_it() {
    let place = Place::new();
    let wide = ["--set=model.hidden=64", "--seq-len=64", "--batch-size=64", "--set=train.evaluation_windows=1"];
    let flags = [&["train", "--out=run", "--device=cuda:emulated"], SMALL, &wide].concat();
    // Room for cuBLAS, the model and an evaluation, not for the activations of a step.
    let output = place.command(&flags).env("PATCHGPT_EMULATOR_MEMORY", (36 << 20).to_string()).output();
    Finished::from(output.expect("the program")).fails(
        1,
        &[
            "out of memory on cuda:emulated",
            "asked for",
            "weights",
            "gradients",
            "moments",
            "activations",
            "train.micro_batch",
            "free",
        ],
    );
}

#[test]
fn runs_with_and_without_graphs_are_one_run_to_the_bit_also_continued() {
    let place = Place::new();
    let small = [
        "--device=cuda:emulated",
        "--batch-size=3",
        "--set=train.micro_batch=2",
        "--seq-len=8",
        "--steps=8",
        "--warmup=1",
    ];
    let model = |run: &str| place.read(&format!("{run}/model/model.safetensors"));
    place.train("graphs", &small).ok();
    place.train("eager", &[&small[..], &["--no-graph"]].concat()).ok();
    assert_eq!(timeless(&place.metrics("graphs")), timeless(&place.metrics("eager")));
    assert!(model("graphs") == model("eager"));
    let config = String::from_utf8(place.read("eager/config.toml")).unwrap();
    assert!(config.contains("graph = false"), "{config}");

    // From the checkpoint of step 6, in the middle of the second stage, with and without.
    for (run, more) in [("graphs", "--no-graph"), ("eager", "--set=device.graph=true")] {
        std::fs::remove_file(place.path(run).join("checkpoints/step-0000000008.safetensors")).unwrap();
        let whole = (timeless(&place.metrics(run)), model(run));
        place.run(&["train", "--resume", "--out", run, more]).ok();
        assert!((timeless(&place.metrics(run)), model(run)) == whole, "{run}");
    }
}
