//! How the tests run the program: a folder, a text, a model of a few thousand parameters.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use patchgpt_models::train::metrics::{self, Record};

/// One layer of width 16 over bytes: four patch steps of K = 4, then eight token steps.
pub(crate) const SMALL: &[&str] = &[
    "--set=model.layers=1",
    "--set=model.hidden=16",
    "--set=model.ffn=24",
    "--set=model.heads=2",
    "--set=train.evaluate_every=5",
    "--set=train.evaluation_windows=4",
    "--seq-len=16",
    "--batch-size=4",
    "--patch-size=4",
    "--patch-fraction=0.6667",
    "--steps=12",
    "--checkpoint-every=3",
    "--threads=1",
    "--data=text.txt",
];

/// A folder with `text.txt`, in which the program runs.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("text.txt"), text(20_000)).unwrap();
        Place { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program with these arguments, ready to start.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_patchgpt"));
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        Finished::from(self.command(arguments).output().unwrap())
    }

    /// `train` on the small model into the folder `out`.
    pub(crate) fn train(&self, out: &str, more: &[&str]) -> Finished {
        self.run(&[&["train", "--out", out], SMALL, more].concat())
    }

    /// `train` in the background.
    pub(crate) fn start(&self, out: &str, more: &[&str]) -> Child {
        let mut command = self.command(&[&["train", "--out", out], SMALL, more].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(crate) fn metrics(&self, out: &str) -> Vec<Record> {
        metrics::read(&self.path(out).join("metrics.jsonl")).unwrap()
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

/// What the program said and how it ended.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Finished {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    /// Panics unless the program succeeded.
    pub(crate) fn ok(self) -> Finished {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self
    }

    /// Panics unless the program ended with this status and one paragraph that holds all of `parts`.
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> Finished {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        let errors: Vec<&str> = self.err.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && self.err.ends_with(&format!("{}\n", errors[0])), "{}", self.err);
        for part in parts {
            assert!(errors[0].contains(part), "`{part}` is not in: {}", errors[0]);
        }
        self
    }
}

/// Text like a play, the same every time.
pub(crate) fn text(bytes: usize) -> String {
    let words = ["love", "night", "the", "king", "and", "sword", "of", "O,", "thou", "art", "gone", "my", "lord"];
    let mut state = 12345u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let mut text = String::new();
    while text.len() < bytes {
        for _ in 0..4 + draw(5) {
            text.push_str(words[draw(words.len() as u64) as usize]);
            text.push(' ');
        }
        text.push('\n');
    }
    text
}

/// Waits until `metrics.jsonl` has so many lines; panics after a minute.
pub(crate) fn wait_for_lines(path: &Path, lines: usize) {
    let begun = Instant::now();
    loop {
        let found = std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
        if found >= lines {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{} has {found} lines after a minute", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Everything of a record that does not depend on the clock.
pub(crate) fn timeless(records: &[Record]) -> Vec<Record> {
    let without = |record: &Record| Record { seconds: 0.0, tokens_per_second: 0.0, ..record.clone() };
    records.iter().map(without).collect()
}
