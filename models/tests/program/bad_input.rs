//! Every mistake: one paragraph that names the value and the remedy, exit status 2 for usage and 1 for failure, nothing damaged.

use crate::run::Place;

#[test]
fn settings_that_cannot_be_meant() {
    let place = Place::new();
    std::fs::write(place.path("unknown.toml"), "[train]\nbatchsize = 1\n").unwrap();
    std::fs::write(place.path("wrong.toml"), "[train]\nlr = \"fast\"\n").unwrap();
    std::fs::write(place.path("broken.toml"), "[train\n").unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--patch-size=0"], &["patch size is 0", "2, 4"]),
        (&["--patch-fraction=1.5"], &["patch_fraction = 1.5", "0 to 1"]),
        (&["--patch-fraction=-0.1"], &["patch_fraction = -0.1", "0 to 1"]),
        (&["--preset=tyny"], &["`tyny`", "tiny"]),
        (&["--config=unknown.toml"], &["unknown.toml", "batchsize", "train.batch_size"]),
        (&["--config=wrong.toml"], &["wrong.toml", "train.lr", "fast"]),
        (&["--config=broken.toml"], &["broken.toml", "not a TOML configuration"]),
        (&["--set=train.learning=1"], &["--set train.learning=1", "there is no key"]),
        (&["--set=train.lr"], &["--set train.lr", "section.key=value"]),
        (&["--lr=fast"], &["--lr fast", "train.lr"]),
        (&["--dtype=f16"], &["f16", "not available", "f32, f64, bf16"]),
        (&["--dtype=int8"], &["int8", "f32, f64"]),
        (&["--device=metal"], &["metal", "not available", "cpu, cuda, cuda:emulated"]),
        (&["--device=gpu"], &["`gpu` is not a device", "cuda"]),
        (&["--device=cuda", "--dtype=f64"], &["f64", "cuda", "f32"]),
        (&["--threads=0"], &["threads is 0", "at least 1"]),
        (&["--seq-len=18", "--set=train.patch_context=tokens"], &["18", "16 or 20"]),
        (&["--batch-size=6", "--set=train.patch_batch=tokens"], &["batch of 6", "4 or 8"]),
        (&["--steps=0"], &["budget is 0"]),
        (&["--steps=3", "--tokens=1000"], &["train.steps", "train.tokens", "exclude"]),
        (&["--flops=10"], &["budget of 1e1 model FLOPs", "one step"]),
        (&["--warmup=50"], &["50"]),
        (&["--tokenizer=bpe:10"], &["bpe:10", "bpe:2048"]),
        (&["--seq-len=0"], &["seq_len is 0"]),
    ];
    for (flags, parts) in cases {
        // A budget of the case's own takes the place of the steps.
        let budget = flags.iter().any(|flag| flag.starts_with("--flops"));
        let small = crate::run::SMALL.iter().filter(|flag| !(budget && flag.starts_with("--steps")));
        let arguments: Vec<&str> = ["train", "--out", "run"].into_iter().chain(small.copied()).collect();
        place.run(&[&arguments[..], flags].concat()).fails(2, parts);
        assert!(!place.path("run").exists(), "{flags:?} left a folder behind");
    }
}

#[test]
fn flags_that_do_not_exist_are_usage() {
    let place = Place::new();
    for arguments in [&["train", "--patchsize=4"][..], &["trian"], &["eval", "--top-k=3"], &[]] {
        let finished = place.run(arguments);
        assert_eq!(finished.code, Some(2), "{arguments:?}: {}", finished.err);
        assert!(!finished.err.is_empty());
    }
    for arguments in [&["--version"][..], &["help"], &["train", "--help"], &["help", "compare"]] {
        assert!(!place.run(arguments).ok().out.is_empty());
    }
    let help = place.run(&["train", "--help"]).out;
    for key in patchgpt_models::config::KEYS {
        assert!(help.contains(key.name), "{} is not in the help", key.name);
    }
}

#[test]
fn data_that_cannot_be_trained_on() {
    let place = Place::new();
    std::fs::write(place.path("empty.txt"), "").unwrap();
    std::fs::write(place.path("latin1.txt"), b"caf\xe9\n".repeat(2000)).unwrap();
    std::fs::write(place.path("short.txt"), "a few\nwords\n").unwrap();
    std::fs::create_dir(place.path("folder")).unwrap();
    let cases: &[(&str, &[&str])] = &[
        ("--data=missing.txt", &["missing.txt", "cannot read"]),
        ("--data=empty.txt", &["empty.txt", "is empty"]),
        ("--data=latin1.txt", &["latin1.txt", "not UTF-8", "0xE9"]),
        ("--data=short.txt", &["too few for one batch", "--batch-size"]),
        ("--data=folder", &["folder", "no .txt"]),
        ("--tokenizer=missing.json", &["missing.json"]),
    ];
    for (flag, parts) in cases {
        let out = format!("run-{}", flag.split('=').next_back().unwrap());
        place.train(&out, &[flag]).fails(1, parts);
    }
    // The configuration was written before the data was read, and a corrected command may use the folder.
    assert!(place.path("run-missing.txt/config.toml").exists());
    place.train("run-missing.txt", &[]).ok();
}

#[test]
fn a_folder_with_a_run_is_never_written_over() {
    let place = Place::new();
    place.train("run", &[]).ok();
    let files = ["config.toml", "metrics.jsonl", "report.html", "model/model.safetensors"];
    let before: Vec<_> = files.iter().map(|file| place.read(&format!("run/{file}"))).collect();
    place.train("run", &["--seed=3"]).fails(2, &["`run`", "--resume", "--out"]);
    let compare = [&["compare", "--out", "run"], crate::run::SMALL].concat();
    place.run(&compare).fails(2, &["`run`", "already holds"]);
    place.run(&["compare", "--resume", "--out", "run"]).fails(2, &["holds a run, not a comparison"]);
    let after: Vec<_> = files.iter().map(|file| place.read(&format!("run/{file}"))).collect();
    assert!(before == after);
    std::fs::create_dir(place.path("mine")).unwrap();
    std::fs::write(place.path("mine/config.toml"), "[other]\nprogram = true\n").unwrap();
    place.train("mine", &[]).fails(2, &["`mine`", "config.toml"]);
    assert_eq!(place.read("mine/config.toml"), b"[other]\nprogram = true\n");
}

#[test]
fn only_a_run_can_be_continued() {
    let place = Place::new();
    std::fs::create_dir(place.path("empty")).unwrap();
    place.run(&["train", "--resume", "--out", "empty"]).fails(2, &["`empty` is no run", "config.toml"]);
    place.run(&["train", "--resume", "--out", "missing"]).fails(2, &["`missing` is no run"]);
    place.run(&["train", "--resume"]).fails(2, &["no run to continue"]);
    assert!(!place.path("missing").exists());
    assert_eq!(std::fs::read_dir(place.path("empty")).unwrap().count(), 0);
}

#[test]
fn a_run_that_diverges_stops_and_keeps_its_last_checkpoint() {
    let place = Place::new();
    let flags = ["--lr=1e30", "--set=train.clip=0", "--warmup=0", "--checkpoint-every=1"];
    place.train("run", &flags).fails(1, &["diverged", "step", "--lr"]);
    let records = place.metrics("run");
    assert!(records.len() < 12 && records.iter().all(|record| record.loss.is_finite()));
}

#[test]
fn models_that_are_not_there() {
    let place = Place::new();
    std::fs::create_dir(place.path("empty")).unwrap();
    for command in ["eval", "generate"] {
        place.run(&[command]).fails(2, &["no finished run"]);
        place.run(&[command, "missing"]).fails(2, &["`missing`", "no such folder"]);
        place.run(&[command, "empty"]).fails(2, &["`empty`", "config.json"]);
    }
    place.train("run", &[]).ok();
    let weights = place.path("run/model/model.safetensors");
    let content = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &content[..content.len() - 5]).unwrap();
    for command in ["eval", "generate"] {
        place.run(&[command, "run"]).fails(1, &["model.safetensors", "truncated"]);
    }
}
