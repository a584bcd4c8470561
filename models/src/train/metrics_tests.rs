//! Metrics on disk: exact keys, exact floats, cuts at a step, damaged files and numbers that JSON does not have.

use std::path::PathBuf;

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("patchgpt-metrics-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn record(step: u64) -> Record {
    let stage = if step <= 2 { StageName::Patch } else { StageName::Token };
    Record {
        step,
        stage,
        tokens: 4096 * step,
        positions: 1024 * step,
        loss: 5.0 / 3.0 + 0.1 * step as f64,
        loss_above_floor: (stage == StageName::Patch).then_some(0.1 + 0.2),
        val_loss: (step == 3).then_some(1.1 / 0.7),
        lr: 2e-3,
        grad_norm: 0.7,
        tokens_per_second: 1e5 / 3.0,
        model_flops: 2.5e20 * step as f64,
        seconds: 0.1 * step as f64,
    }
}

fn written(folder: &Folder, steps: u64) -> Vec<Record> {
    let all: Vec<_> = (1..=steps).map(record).collect();
    let mut writer = MetricsWriter::create(&folder.file()).unwrap();
    all.iter().for_each(|record| writer.write(record).unwrap());
    writer.sync().unwrap();
    all
}

#[test]
fn lines_hold_exactly_the_documented_keys() {
    let folder = Folder::new("keys");
    written(&folder, 3);
    let text = std::fs::read_to_string(folder.file()).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys = |line: &serde_json::Value| {
        let mut keys: Vec<_> = line.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys.join(" ")
    };
    let token = "grad_norm loss lr model_flops positions seconds stage step tokens tokens_per_second val_loss";
    let patch = token.replacen("loss lr", "loss loss_above_floor lr", 1);
    assert_eq!(keys(&lines[0]), patch);
    assert_eq!(keys(&lines[2]), token);
    assert_eq!(lines[0]["stage"], "patch");
    assert_eq!(lines[2]["stage"], "token");
    assert!(lines[0]["val_loss"].is_null());
    assert!(lines[2]["val_loss"].is_f64());
    assert!(text.starts_with("{\"step\":1,\"stage\":\"patch\",\"tokens\":4096,\"positions\":1024,\"loss\":"));
}

#[test]
fn reading_returns_what_was_written_to_the_bit() {
    let folder = Folder::new("bits");
    let all = written(&folder, 5);
    assert_eq!(read(&folder.file()).unwrap(), all);
}

#[test]
fn a_record_without_its_newline_is_none() {
    let folder = Folder::new("torn");
    let all = written(&folder, 3);
    let text = std::fs::read(folder.file()).unwrap();
    for cut in [1, 2, 40] {
        std::fs::write(folder.file(), &text[..text.len() - cut]).unwrap();
        assert_eq!(read(&folder.file()).unwrap(), all[..2], "{cut} bytes missing");
        let mut writer = MetricsWriter::open_at(&folder.file(), 3).unwrap();
        assert_eq!(writer.last_step(), Some(2));
        writer.write(&all[2]).unwrap();
        assert_eq!(std::fs::read(folder.file()).unwrap(), text, "{cut} bytes missing");
    }
}

#[test]
fn opening_at_a_step_cuts_what_comes_after_and_keeps_the_rest_byte_for_byte() {
    let folder = Folder::new("cut");
    let all = written(&folder, 6);
    let text = std::fs::read(folder.file()).unwrap();
    drop(MetricsWriter::open_at(&folder.file(), 6).unwrap());
    assert_eq!(std::fs::read(folder.file()).unwrap(), text);
    let mut writer = MetricsWriter::open_at(&folder.file(), 4).unwrap();
    assert_eq!(read(&folder.file()).unwrap(), all[..4]);
    assert!(writer.write(&all[3]).is_err(), "a step may not be written twice");
    writer.write(&all[4]).unwrap();
    writer.write(&all[5]).unwrap();
    assert_eq!(std::fs::read(folder.file()).unwrap(), text);
    drop(MetricsWriter::open_at(&folder.file(), 0).unwrap());
    assert_eq!(std::fs::read(folder.file()).unwrap(), b"");
    assert_eq!(std::fs::read_dir(&folder.0).unwrap().count(), 1, "no partial file stays behind");
}

#[test]
fn damage_after_the_step_is_cut_and_damage_before_it_is_an_error_naming_the_line() {
    let folder = Folder::new("damage");
    let all = written(&folder, 4);
    let text = std::fs::read_to_string(folder.file()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let damaged = format!("{}\n{}\n\0\0\0\n{}\n", lines[0], lines[1], lines[3]);
    std::fs::write(folder.file(), &damaged).unwrap();
    let message = read(&folder.file()).unwrap_err().to_string();
    assert!(message.contains("line 3 of"), "{message}");
    assert!(MetricsWriter::open_at(&folder.file(), 3).is_err());
    assert_eq!(std::fs::read_to_string(folder.file()).unwrap(), damaged, "an error changes nothing");
    drop(MetricsWriter::open_at(&folder.file(), 2).unwrap());
    assert_eq!(read(&folder.file()).unwrap(), all[..2]);
}

#[test]
fn foreign_keys_missing_keys_and_disorder_are_errors() {
    let folder = Folder::new("foreign");
    let good = record(3).to_line().unwrap();
    for (bad, expected) in [
        (good.replace("\"lr\"", "\"learning_rate\""), "learning_rate"),
        (good.replace(",\"val_loss\":1.5714285714285716", ""), "val_loss"),
        (good.replace("token\"", "warmup\""), "warmup"),
        (format!("{good}\n{good}"), "step 3 follows step 3"),
        (good.replace("\"step\":3", "\"step\":0"), "step 0 follows step 0"),
        (String::new(), "EOF"),
    ] {
        assert_ne!(bad, good);
        std::fs::write(folder.file(), format!("{bad}\n")).unwrap();
        let message = read(&folder.file()).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("line "), "{message}");
    }
}

/// Puts a number where it does not belong.
type Spoil = fn(&mut Record, f64);

#[test]
fn numbers_that_are_not_finite_are_refused_and_leave_the_file_as_it_was() {
    let folder = Folder::new("finite");
    written(&folder, 2);
    let before = std::fs::read(folder.file()).unwrap();
    let mut writer = MetricsWriter::open_at(&folder.file(), 2).unwrap();
    let spoil: [(&str, Spoil); 8] = [
        ("loss", |record, value| record.loss = value),
        ("loss_above_floor", |record, value| record.loss_above_floor = Some(value)),
        ("val_loss", |record, value| record.val_loss = Some(value)),
        ("lr", |record, value| record.lr = value),
        ("grad_norm", |record, value| record.grad_norm = value),
        ("tokens_per_second", |record, value| record.tokens_per_second = value),
        ("model_flops", |record, value| record.model_flops = value),
        ("seconds", |record, value| record.seconds = value),
    ];
    for (key, set) in spoil {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut bad = record(3);
            set(&mut bad, value);
            let message = writer.write(&bad).unwrap_err().to_string();
            assert!(message.contains("step 3") && message.contains(&format!("`{key}`")), "{message}");
        }
    }
    assert_eq!(std::fs::read(folder.file()).unwrap(), before);
    writer.write(&record(3)).unwrap();
}

#[test]
fn a_new_file_never_replaces_an_old_one() {
    let folder = Folder::new("new");
    written(&folder, 1);
    let before = std::fs::read(folder.file()).unwrap();
    assert!(MetricsWriter::create(&folder.file()).is_err());
    assert_eq!(std::fs::read(folder.file()).unwrap(), before);
    let elsewhere = folder.0.join("other.jsonl");
    assert_eq!(MetricsWriter::open_at(&elsewhere, 7).unwrap().last_step(), None);
    assert!(elsewhere.exists());
    let nowhere = folder.0.join("none").join("metrics.jsonl");
    let message = MetricsWriter::create(&nowhere).unwrap_err().to_string();
    assert!(message.contains("metrics.jsonl"), "{message}");
}
