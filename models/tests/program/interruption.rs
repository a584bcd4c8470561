//! Runs that were killed, stopped or damaged, and what `--resume` makes of them.

use std::process::{Command, Stdio};

use crate::run::{Finished, Place, timeless, wait_for_lines};

/// Enough steps that a kill hits the middle: 500 patch steps and 1000 token steps, a checkpoint every 20.
const LONG: &[&str] = &[
    "--steps=1500",
    "--checkpoint-every=20",
    "--set=train.evaluate_every=150",
    "--set=train.optimizer_at_switch=reset",
];

fn assert_same_run(place: &Place, ours: &str, theirs: &str) {
    assert_eq!(timeless(&place.metrics(ours)), timeless(&place.metrics(theirs)));
    for file in ["model/model.safetensors", "model/tokenizer.json", "model/config.json"] {
        assert_eq!(place.read(&format!("{ours}/{file}")), place.read(&format!("{theirs}/{file}")), "{file}");
    }
}

fn send(signal: &str, process: u32) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

#[test]
fn a_killed_run_continues_to_the_bit() {
    let place = Place::new();
    place.train("whole", LONG).ok();
    // In the patch stage (500 steps), and again in the token stage.
    let mut killed = place.start("killed", LONG);
    wait_for_lines(&place.path("killed/metrics.jsonl"), 70);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let made = place.metrics("killed").len();
    assert!((70..500).contains(&made), "killed after {made} steps");

    let mut command = place.command(&["train", "--resume", "--out", "killed"]);
    let mut killed = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_lines(&place.path("killed/metrics.jsonl"), 700);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let made = place.metrics("killed").len();
    assert!((700..1500).contains(&made), "killed after {made} steps");

    let resumed = place.run(&["train", "--resume", "--out", "killed", "--threads=2", "--checkpoint-every=100"]).ok();
    assert!(resumed.err.contains("continuing after step"), "{}", resumed.err);
    assert_same_run(&place, "whole", "killed");
    let seconds: Vec<f64> = place.metrics("killed").iter().map(|record| record.seconds).collect();
    assert!(seconds.is_sorted(), "seconds count on from the checkpoint");
}

#[test]
fn ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on() {
    let place = Place::new();
    place.train("whole", LONG).ok();
    let stopped = place.start("stopped", LONG);
    wait_for_lines(&place.path("stopped/metrics.jsonl"), 55);
    send("-INT", stopped.id());
    let stopped = Finished::from(stopped.wait_with_output().unwrap());
    assert_eq!(stopped.code, Some(130), "{}", stopped.err);
    let steps = place.metrics("stopped").len();
    assert!((55..1500).contains(&steps));
    assert!(stopped.out.contains(&format!("stopped after step {steps} of 1500")), "{}", stopped.out);
    assert!(stopped.out.contains("patchgpt train --resume --out stopped"), "{}", stopped.out);
    assert!(place.path(&format!("stopped/checkpoints/step-{steps:010}.safetensors")).exists());
    assert!(place.path("stopped/model/model.safetensors").exists(), "the model as it stands can be looked at");
    place.run(&["train", "--resume", "--out", "stopped"]).ok();
    assert_same_run(&place, "whole", "stopped");
}

#[test]
fn a_run_without_a_checkpoint_starts_over_and_says_so() {
    let place = Place::new();
    place.train("whole", &[]).ok();
    place.train("early", &[]).ok();
    std::fs::remove_dir_all(place.path("early/checkpoints")).unwrap();
    let resumed = place.run(&["train", "--resume", "--out", "early"]).ok();
    assert!(resumed.err.contains("starts over"), "{}", resumed.err);
    assert_same_run(&place, "whole", "early");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_an_older_one() {
    let place = Place::new();
    place.train("whole", &[]).ok();
    place.train("run", &[]).ok();
    let newest = place.path("run/checkpoints/step-0000000012.safetensors");
    let content = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &content[..content.len() / 2]).unwrap();
    let resumed = place.run(&["train", "--resume", "--out", "run"]).ok();
    assert!(resumed.err.contains("step-0000000012") && resumed.err.contains("of step 9"), "{}", resumed.err);
    assert_same_run(&place, "whole", "run");

    for step in [9, 12] {
        std::fs::write(place.path(&format!("run/checkpoints/step-{step:010}.safetensors")), "gone").unwrap();
    }
    let refused = place.run(&["train", "--resume", "--out", "run"]);
    refused.fails(1, &["no checkpoint", "step-0000000009", "step-0000000012", "remove the folder"]);
    assert_same_run(&place, "whole", "run");
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let place = Place::new();
    place.train("run", &[]).ok();
    place.train("other", &["--seed=2"]).ok();
    let name = "checkpoints/step-0000000012.safetensors";
    std::fs::copy(place.path("other").join(name), place.path("run").join(name)).unwrap();
    let refused = place.run(&["train", "--resume", "--out", "run"]);
    refused.fails(1, &["step-0000000012", "another configuration"]);
}

#[test]
fn lost_token_files_are_made_again_and_other_text_is_refused() {
    let place = Place::new();
    place.train("run", &["--tokenizer=bpe:280"]).ok();
    let before = place.read("run/model/model.safetensors");
    let newest = place.path("run/checkpoints/step-0000000012.safetensors");
    for damage in ["removed", "changed"] {
        std::fs::remove_file(&newest).unwrap();
        let tokens = place.path("run/data/train.tokens");
        let mut content = std::fs::read(&tokens).unwrap();
        content[1001] ^= 1;
        match damage {
            "removed" => std::fs::remove_file(&tokens).unwrap(),
            _ => std::fs::write(&tokens, content).unwrap(),
        }
        let resumed = place.run(&["train", "--resume", "--out", "run"]).ok();
        assert!(resumed.err.contains("made again"), "{damage}: {}", resumed.err);
        assert_eq!(before, place.read("run/model/model.safetensors"), "{damage}");
    }
    std::fs::remove_file(place.path("run/data/train.tokens")).unwrap();
    let mut text = place.read("text.txt");
    text[500] = b'#';
    std::fs::write(place.path("text.txt"), text).unwrap();
    place.run(&["train", "--resume", "--out", "run"]).fails(1, &["has changed since the checkpoint"]);
}

#[test]
fn flags_that_contradict_the_run_name_both_values() {
    let place = Place::new();
    place.train("run", &[]).ok();
    let before = place.read("run/metrics.jsonl");
    for (flag, parts) in [
        ("--lr=0.5", ["train.lr", "0.5", "0.002"]),
        ("--steps=99", ["train.steps", "99", "12"]),
        ("--patch-size=2", ["train.patch_size", "2", "4"]),
        ("--seed=5", ["train.seed", "5", "1"]),
        ("--preset=gpt2", ["model.preset", "gpt2", "tiny"]),
    ] {
        place.run(&["train", "--resume", "--out", "run", flag]).fails(2, &parts);
    }
    assert_eq!(before, place.read("run/metrics.jsonl"));
    // The same flags again, or others that change no result, are no contradiction.
    place.train("run", &["--resume", "--threads=2", "--checkpoint-every=4"]).ok();
}

#[test]
fn a_full_disk_names_the_file_and_the_run_goes_on_later() {
    let place = Place::new();
    let wide = ["--set=model.hidden=48", "--set=model.ffn=96"];
    place.train("whole", &wide).ok();
    // A limit on the size of files, with its signal ignored, fails writes as a full disk does.
    let arguments = [&["train", "--out", "full"], crate::run::SMALL, &wide[..]].concat();
    let script = format!("trap '' XFSZ; ulimit -f 256; exec {} \"$@\"", env!("CARGO_BIN_EXE_patchgpt"));
    let output = Command::new("bash")
        .args(["-c", &script, "patchgpt"])
        .args(&arguments)
        .current_dir(place.path("."))
        .output()
        .unwrap();
    let failed = Finished::from(output);
    failed.fails(1, &["cannot write", "step-0000000003", "--resume"]);
    let left: Vec<_> = std::fs::read_dir(place.path("full/checkpoints")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    place.run(&["train", "--resume", "--out", "full"]).ok();
    assert_same_run(&place, "whole", "full");
}
