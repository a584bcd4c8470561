//! Files from outside, as bytes: each target reads them as a user's file of its kind and may refuse them, but never panic, hang or take
//! memory that the file does not justify. Driven by `tests/tests/untrusted.rs` (mutations of valid files, on every run of the tests)
//! and by `tests/fuzz` (libFuzzer, guided by coverage).

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use patchgpt_models::config::{Config, Dialect, ModelConfig};
use patchgpt_models::data::{Text, TokenFile, Tokenizer};
use patchgpt_models::evaluate::Evaluation;
use patchgpt_models::train::checkpoint::{Checkpoints, State};
use patchgpt_models::{AdamW, AdamWSettings, Gpt, hub};
use patchgpt_tensor::{DType, Device};

/// A reader of untrusted bytes, and valid files for it to begin with.
pub struct Target {
    /// Its name, and that of the libFuzzer target.
    pub name: &'static str,
    /// Reads the bytes.
    pub read: fn(&[u8]),
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: [Target; 7] = [
    Target { name: "checkpoint", read: checkpoint, seeds: checkpoint_seeds },
    Target { name: "counters", read: counters, seeds: || vec![json(&state())] },
    Target { name: "weights", read: weights, seeds: weights_seeds },
    Target { name: "index", read: index, seeds: index_seeds },
    Target { name: "token_file", read: token_file, seeds: token_file_seeds },
    Target { name: "tokenizer", read: tokenizer, seeds: tokenizer_seeds },
    Target { name: "config", read: config, seeds: config_seeds },
];

/// The target of a name.
///
/// # Panics
/// No target has it.
pub fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("a target of this name")
}

/// A folder of this thread's own.
fn folder() -> PathBuf {
    thread_local! {
        static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
    }
    FOLDER.with(|folder| folder.get_or_init(|| tempfile::tempdir().expect("a folder")).path().to_path_buf())
}

/// A fresh folder in it.
fn fresh(name: &str) -> PathBuf {
    let path = folder().join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("a folder");
    path
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file");
}

fn device() -> Device {
    thread_local! {
        static DEVICE: Device = Device::cpu_with_threads(1).expect("a CPU");
    }
    DEVICE.with(Device::clone)
}

fn small(dialect: Dialect) -> ModelConfig {
    let tiny = Config::preset("tiny").expect("the preset").model;
    ModelConfig {
        preset: None,
        dialect,
        layers: 1,
        hidden: 4,
        ffn: 6,
        heads: 2,
        kv_heads: 2,
        vocab_size: 7,
        max_positions: 8,
        ..tiny
    }
}

fn model(dialect: Dialect) -> Gpt {
    Gpt::new(&small(dialect), DType::F32, &device(), 1).expect("a model")
}

fn state() -> State {
    let evaluation = Evaluation { loss: 1.5, perplexity: 4.5, bits_per_byte: 2.0, tokens: 10, bytes: 20 };
    let data = ["a".repeat(64), "b".repeat(64)];
    State {
        step: 3,
        optimizer_steps: 3,
        seconds: 1.5,
        seed: 9,
        initial: evaluation.into(),
        config: "c".repeat(64),
        data,
    }
}

fn json(state: &State) -> Vec<u8> {
    serde_json::to_vec(state).expect("counters")
}

fn restore(folder: PathBuf) {
    let mut told = 0;
    if let Ok(Some(checkpoint)) = Checkpoints::new(folder).newest(|_| told += 1) {
        let gpt = model(Dialect::Llama);
        let mut optimizer = AdamW::new(gpt.parameters(), AdamWSettings::default()).expect("an optimizer");
        let _ = checkpoint.restore(gpt.parameters(), &mut optimizer);
    }
}

/// A checkpoint file.
fn checkpoint(bytes: &[u8]) {
    let folder = fresh("checkpoints");
    write(&folder.join("step-0000000003.safetensors"), bytes);
    restore(folder);
}

fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let gpt = model(Dialect::Llama);
    let optimizer = AdamW::new(gpt.parameters(), AdamWSettings::default()).expect("an optimizer");
    let path = Checkpoints::new(fresh("seeds")).write(&state(), gpt.parameters(), &optimizer).expect("a checkpoint");
    vec![std::fs::read(path).expect("a checkpoint")]
}

/// The counters of a checkpoint that is whole otherwise, checksum included.
fn counters(bytes: &[u8]) {
    let Ok(json) = std::str::from_utf8(bytes) else { return };
    let names = ["weights", "first_moment", "second_moment"];
    let values = [1f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat();
    let mut hasher = blake3::Hasher::new();
    hasher.update(json.as_bytes());
    for _ in names {
        hasher.update(&values);
    }
    let metadata = [("state".to_string(), json.to_string()), ("blake3".into(), hasher.finalize().to_hex().to_string())];
    let view = |name| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![4], &values);
        (name, view.expect("four numbers"))
    };
    let file = safetensors::serialize(names.map(view), Some(metadata.into())).expect("a file");
    checkpoint(&file);
}

/// Loads the model of a folder and, if it is one, runs it.
fn load(folder: &Path) {
    if let Ok(gpt) = hub::load(folder, DType::F32, &device()) {
        let ids = patchgpt_tensor::Tensor::from_slice(&[0i32, 0], &[1, 2, 1], &device()).expect("ids");
        let _ = gpt.logits(&ids);
    }
}

/// A folder with a model, the same for every input: saving one takes longer than refusing one.
fn prepared(name: &str, dialect: Dialect) -> PathBuf {
    let folder = folder().join(format!("{name}-{dialect}"));
    if !folder.exists() {
        hub::save(&model(dialect), &folder).expect("a folder");
    }
    folder
}

/// `model.safetensors` beside a valid `config.json`.
fn weights(bytes: &[u8]) {
    for dialect in [Dialect::Llama, Dialect::Gpt2] {
        let folder = prepared("weights", dialect);
        write(&folder.join("model.safetensors"), bytes);
        load(&folder);
    }
}

fn saved(dialect: Dialect) -> PathBuf {
    let folder = fresh("seeds");
    hub::save(&model(dialect), &folder).expect("a folder");
    folder
}

fn weights_seeds() -> Vec<Vec<u8>> {
    let file = |dialect| std::fs::read(saved(dialect).join("model.safetensors")).expect("weights");
    [Dialect::Llama, Dialect::Gpt2].map(file).into()
}

/// `model.safetensors.index.json` beside a shard with all weights.
fn index(bytes: &[u8]) {
    let folder = prepared("index", Dialect::Gpt2);
    if !folder.join("a.safetensors").exists() {
        std::fs::rename(folder.join("model.safetensors"), folder.join("a.safetensors")).expect("a file");
    }
    write(&folder.join("model.safetensors.index.json"), bytes);
    load(&folder);
}

fn index_seeds() -> Vec<Vec<u8>> {
    let names = hub::tensors(&small(Dialect::Gpt2)).into_iter().map(|tensor| (tensor.name, "a.safetensors".into()));
    let map: serde_json::Map<String, serde_json::Value> = names.collect();
    vec![serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map }).to_string().into_bytes()]
}

/// A token file: opened, verified, read.
fn token_file(bytes: &[u8]) {
    let path = folder().join("text.tokens");
    write(&path, bytes);
    let Ok(file) = TokenFile::open(&path) else { return };
    let _ = file.verify();
    let (count, mut ids) = (file.token_count(), Vec::new());
    for range in [0..count.min(50), count.saturating_sub(3)..count, count..count, 1..count.saturating_add(1).min(99)] {
        ids.clear();
        if file.read(range, &mut ids).is_ok() {
            assert!(ids.iter().all(|&id| (0..file.vocabulary() as i64).contains(&i64::from(id))), "{ids:?}");
        }
    }
}

fn token_file_seeds() -> Vec<Vec<u8>> {
    let tokenizer = Tokenizer::bytes().expect("bytes");
    let text = Text::from_documents("seeds", ["To be, or not to be", "that is", "the question"]).expect("text");
    let path = folder().join("seed.tokens");
    TokenFile::create(&path, &text, &tokenizer).expect("a token file");
    vec![std::fs::read(&path).expect("a token file")]
}

/// `tokenizer.json`: loaded, then asked to encode and decode.
fn tokenizer(bytes: &[u8]) {
    let path = folder().join("tokenizer.json");
    write(&path, bytes);
    let Ok(tokenizer) = Tokenizer::load(&path) else { return };
    if let Ok(ids) = tokenizer.encode("It's \u{4e2d}\u{6587}, 12\n\n  and more \u{1f319}") {
        let _ = tokenizer.decode(&ids);
        let bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id)).sum();
        assert!(bytes < 1 << 20, "{bytes} bytes of text");
    }
    let _ = tokenizer.decode(&[-1, i32::MAX, 0]);
}

fn tokenizer_seeds() -> Vec<Vec<u8>> {
    let text = Text::from_documents("seeds", [&"the king and the sword and the night ".repeat(40)]).expect("text");
    let folder = fresh("seeds");
    let trained = [Tokenizer::train(&text, 262), Tokenizer::bytes()];
    let file = |tokenizer: patchgpt_models::Result<Tokenizer>| {
        tokenizer.and_then(|tokenizer| tokenizer.save(&folder)).expect("a tokenizer");
        std::fs::read(folder.join("tokenizer.json")).expect("a tokenizer")
    };
    trained.map(file).into()
}

/// `config.json` beside weights of another model, and a configuration of the program.
fn config(bytes: &[u8]) {
    let folder = prepared("config", Dialect::Llama);
    write(&folder.join("config.json"), bytes);
    load(&folder);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(config) = Config::from_toml("config.toml", text)
    {
        let written = config.to_toml().expect("a configuration that was read can be written");
        assert_eq!(Config::from_toml("config.toml", &written).expect("and read again"), config);
    }
}

fn config_seeds() -> Vec<Vec<u8>> {
    let file = |dialect| std::fs::read(saved(dialect).join("config.json")).expect("a configuration");
    let toml = Config::preset("tiny").and_then(|config| config.to_toml()).expect("a configuration");
    vec![file(Dialect::Llama), file(Dialect::Gpt2), toml.into_bytes()]
}

/// Reproducible mutations: flipped bits, changed bytes, cut, doubled and moved pieces, numbers made extreme, words of the formats.
pub struct Mutator(u64);

impl Mutator {
    /// Mutations that follow from `seed`.
    pub fn new(seed: u64) -> Mutator {
        Mutator(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound.max(1) as u64) as usize
    }

    /// `input` with one to four mutations.
    pub fn mutate(&mut self, input: &[u8]) -> Vec<u8> {
        const WORDS: [&str; 22] = [
            "null",
            "true",
            "-1",
            "0",
            "1e999",
            "NaN",
            "18446744073709551615",
            "4294967295",
            "2147483647",
            "9999999",
            "\"\"",
            "[]",
            "{}",
            "\"F64\"",
            "\"BF16\"",
            "[0,0]",
            "\u{0}",
            "../",
            "\u{4e2d}",
            "[",
            "}",
            ",",
        ];
        let mut bytes = input.to_vec();
        for _ in 0..1 + self.below(4) {
            let at = self.below(bytes.len().max(1));
            let length = 1 + self.below(16);
            let end = (at + length).min(bytes.len());
            match self.below(9) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => bytes.truncate(at),
                3 => drop(bytes.drain(at..end)),
                4 => {
                    let piece = bytes[at.min(end)..end].to_vec();
                    let to = self.below(bytes.len() + 1);
                    drop(bytes.splice(to..to, piece));
                }
                5 => {
                    let word = WORDS[self.below(WORDS.len())];
                    drop(bytes.splice(at..at.min(end), word.bytes()));
                }
                // A run of digits becomes another number.
                6 => {
                    let digits: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
                    if let Some(&start) = digits.get(self.below(digits.len())) {
                        let end = (start..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
                        let word = WORDS[self.below(10)];
                        drop(bytes.splice(start..end, word.bytes()));
                    }
                }
                // Lengths and counts lie in the first bytes of binary files.
                7 if bytes.len() >= 128 => {
                    let at = 8 * self.below(16);
                    let value: u64 = [0, 1, 255, 1 << 31, u64::MAX, 1 << 40][self.below(6)];
                    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
                _ => bytes.extend(std::iter::repeat_n(self.below(256) as u8, length)),
            }
        }
        bytes
    }
}
