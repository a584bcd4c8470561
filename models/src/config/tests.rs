//! Layers, round trips, and what every kind of wrong input is answered with.

use super::*;
use crate::schedule::Warmup;

fn no_file(path: &Path) -> Result<usize> {
    panic!("no tokenizer file is named, but {} was asked for", path.display())
}

/// Resolves `--set` assignments over the default preset.
fn sets(assignments: &[&str]) -> Result<Config> {
    let layers = assignments.iter().try_fold(Layers::new(), |layers, assignment| layers.set(assignment))?;
    Config::resolve(layers, no_file)
}

/// The message of a refused request, after checking that it counts as usage.
fn refusal(result: Result<Config>) -> String {
    let error = result.expect_err("must be refused");
    assert_eq!(error.exit_code(), 2, "{error}");
    error.to_string()
}

fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
}

#[test]
fn without_layers_it_is_the_default_preset() {
    assert_eq!(sets(&[]).unwrap(), Config::preset(DEFAULT_PRESET).unwrap());
}

#[test]
fn every_preset_is_valid_and_survives_its_file() {
    for preset in PRESETS {
        let config = preset.config();
        config.validate().unwrap_or_else(|error| panic!("{}: {error}", preset.name));
        let text = config.to_toml().unwrap();
        let again =
            Config::from_toml("config.toml", &text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", preset.name));
        assert_eq!(config, again);
        assert_eq!(again.to_toml().unwrap(), text);
    }
}

#[test]
fn a_resolved_file_repeats_the_run_and_needs_no_preset() {
    let config = sets(&[
        "model.preset=gpt2",
        "train.patch_sizes=[8, 2]",
        "train.patch_shares=[0.5, 1.5]",
        "train.tokens=3e7",
        "train.warmup=0.01",
        "train.lr=0.1",
        "train.micro_batch=3",
        "device.threads=2",
        "device.device=cuda:emulated",
        "device.kernel=attention=sm80",
        "device.graph=false",
        "device.gemm_search=true",
        "train.target_weights=1/k",
        "data.path=some text.txt",
    ])
    .unwrap();
    assert_eq!((config.train.tokens, config.train.steps), (Some(30_000_000), None));
    assert_eq!((config.train.patch_size, config.train.stage_patch_sizes()), (None, vec![8, 2]));
    assert!(config.data.path.as_ref().unwrap().is_absolute());
    let text = config.to_toml().unwrap();
    assert_eq!(Config::from_toml("config.toml", &text).unwrap(), config);
    // Every value stands in the file: without the name of the preset only that name changes.
    let without = text.lines().filter(|line| !line.starts_with("preset = ")).collect::<Vec<_>>().join("\n");
    let mut other = Config::from_toml("config.toml", &without).unwrap();
    assert_eq!(other.model.preset.replace("gpt2".into()).as_deref(), Some(DEFAULT_PRESET));
    assert_eq!(other.train, config.train);
}

#[test]
fn later_layers_cover_earlier_ones() {
    let layers = Layers::new()
        .flag("--lr", "train.lr", "4e-3")
        .unwrap()
        .set("train.lr=3e-3")
        .unwrap()
        .set("train.seed=3")
        .unwrap()
        .text("the file `a.toml`", "[train]\nlr = 2e-3\nseed = 2\nclip = 0.5\n")
        .unwrap();
    let config = Config::resolve(layers, no_file).unwrap();
    assert_eq!((config.train.lr, config.train.seed, config.train.clip, config.train.beta2), (4e-3, 3, 0.5, 0.95));
}

#[test]
fn a_later_budget_takes_the_place_of_an_earlier_one() {
    let layers = Layers::new().text("a", "[train]\ntokens = 1000000\n").unwrap();
    let train = Config::resolve(layers, no_file).unwrap().train;
    assert_eq!((train.steps, train.tokens, train.flops), (None, Some(1_000_000), None));
    let layers =
        Layers::new().text("a", "[train]\ntokens = 1000000\n").unwrap().flag("--steps", "train.steps", "7").unwrap();
    let train = Config::resolve(layers, no_file).unwrap().train;
    assert_eq!((train.steps, train.tokens, train.flops), (Some(7), None, None));
    let train = sets(&["train.patch_fraction=0.5"]).unwrap().train;
    assert_eq!((train.patch_fraction, train.step_fraction), (Some(0.5), None));
}

#[test]
fn exclusive_settings_in_one_layer_are_refused_with_both_values() {
    let layers = Layers::new().flag("--steps", "train.steps", "7").unwrap().set("train.flops=1e12").unwrap();
    assert_contains(
        &refusal(Config::resolve(layers, no_file)),
        &["train.steps = 7", "train.flops", "exclude each other"],
    );
    let layers = Layers::new().text("`a.toml`", "[train]\nsteps = 7\ntokens = 9\n").unwrap();
    assert_contains(&refusal(Config::resolve(layers, no_file)), &["train.steps = 7", "train.tokens = 9", "`a.toml`"]);
    assert_contains(&refusal(sets(&["train.patch_fraction=0.5", "train.step_fraction=0.5"])), &["exclude"]);
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    assert_contains(&refusal(sets(&["train.sequence_len=5"])), &["`train.sequence_len`", "`train.seq_len`"]);
    assert_contains(&refusal(sets(&["model.lr=5"])), &["`model.lr`", "`train.lr`"]);
    assert_contains(&refusal(sets(&["lr=5"])), &["`lr`", "`train.lr`"]);
    assert_contains(&refusal(sets(&["train.xyzzy=5"])), &["`train.xyzzy`", "section.key"]);
    let file = Layers::new().text("the file `a.toml`", "[modle]\nlayers = 2\n").unwrap_err();
    assert_contains(&file.to_string(), &["the file `a.toml`", "`modle.layers`", "`model.layers`"]);
    let top = Layers::new().text("the file `a.toml`", "seed = 2\n").unwrap_err();
    assert_contains(&top.to_string(), &["`seed`", "`train.seed`"]);
    assert_eq!(top.exit_code(), 2);
}

#[test]
fn wrong_types_name_source_key_and_value() {
    assert_contains(
        &refusal(sets(&["train.lr=fast"])),
        &["--set train.lr=fast", "train.lr = \"fast\"", "expected f64"],
    );
    assert_contains(&refusal(sets(&["train.batch_size=-3"])), &["train.batch_size = -3"]);
    assert_contains(&refusal(sets(&["train.steps=1.5"])), &["train.steps = 1.5", "whole number"]);
    assert_contains(&refusal(sets(&["train.warmup=1.5"])), &["train.warmup = 1.5", "fraction"]);
    assert_contains(&refusal(sets(&["train.recompute=maybe"])), &["maybe", "nothing", "cheap", "blocks"]);
    let layers = Layers::new().text("the file `a.toml`", "[train]\nlr = [1]\n").unwrap();
    assert_contains(&refusal(Config::resolve(layers, no_file)), &["the file `a.toml`", "train.lr"]);
    let toml = Layers::new().text("the file `a.toml`", "[train\n").unwrap_err();
    assert_contains(&toml.to_string(), &["the file `a.toml`", "not a TOML"]);
    assert_contains(&Layers::new().set("train.lr").unwrap_err().to_string(), &["section.key=value"]);
}

#[test]
fn what_is_not_there_yet_says_what_is() {
    assert_contains(
        &refusal(sets(&["device.dtype=f16"])),
        &["`f16`", "not available on this device yet", "f32, f64, bf16"],
    );
    assert_contains(&refusal(sets(&["device.device=metal"])), &["`metal`", "not available", "available: cpu, cuda"]);
    assert_contains(
        &refusal(sets(&["device.device=cuda", "device.dtype=f64"])),
        &["\"f64\" is for the CPU", "on cuda use f32"],
    );
    assert_contains(&refusal(sets(&["device.dtype=int4"])), &["`int4` is not a dtype"]);
    assert_contains(&refusal(sets(&["train.schedule=linear"])), &["rewarm, continuous, wsd"]);
}

#[test]
fn unknown_presets_are_refused_with_the_list() {
    assert_contains(&refusal(sets(&["model.preset=370M"])), &["`370M`", "did you mean `370m`", "tiny, gpt2"]);
    let layers = Layers::new()
        .text("the file `a.toml`", "[model]\npreset = \"tiny\"\n")
        .unwrap()
        .flag("--preset", "model.preset", "370m")
        .unwrap();
    assert_contains(&refusal(Config::resolve(layers, no_file)), &["tiny", "370m", "--preset", "the file `a.toml`"]);
}

#[test]
fn values_out_of_range_are_refused() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["train.patch_size=0"], &["patch size is 0"]),
        (&["train.patch_fraction=1.5"], &["patch_fraction = 1.5", "outside 0 to 1"]),
        (&["train.patch_fraction=nan"], &["patch_fraction = NaN"]),
        (&["train.step_fraction=-0.1"], &["step_fraction = -0.1"]),
        (&["train.patch_context=tokens", "train.patch_size=3"], &["256", "patches of 3", "255 or 258"]),
        (&["train.patch_batch=tokens", "train.patch_size=3"], &["4", "patch size 3", "3 or 6"]),
        (&["train.patch_sizes=[]"], &["empty"]),
        (&["train.patch_sizes=[4, 1]"], &["[4, 1]", "token stage"]),
        (&["train.patch_sizes=[4, 2]", "train.patch_shares=[1.0]"], &["1 entries for 2"]),
        (&["train.patch_sizes=[4, 2]", "train.patch_shares=[1.0, 0.0]"], &["contains 0"]),
        (&["train.patch_shares=[1.0]"], &["patch_sizes"]),
        (&["train.steps=0"], &["budget is 0"]),
        (&["train.flops=inf"], &["flops = inf"]),
        (&["train.seq_len=0"], &["seq_len is 0"]),
        (&["train.lr=0"], &["lr = 0"]),
        (&["train.lr=nan"], &["lr = NaN"]),
        (&["train.min_lr=1"], &["min_lr = 1", "lr = 0.002"]),
        (&["train.beta2=1"], &["beta2 = 1"]),
        (&["train.clip=-1"], &["clip = -1"]),
        (&["train.stochastic_rounding=true"], &["stochastic_rounding is for bf16", "`f32`"]),
        (&["train.decay_fraction=2"], &["decay_fraction = 2"]),
        (&["data.validation_fraction=1"], &["validation_fraction = 1"]),
        (&["data.tokenizer=bpe:12"], &["bpe:12", "above 256"]),
        (&["data.tokenizer=bpe"], &["bpe:N"]),
        (&["device.threads=0"], &["threads is 0"]),
        (&["device.kernel=attention=sm80"], &["attention=sm80", "set device.device to cuda"]),
        (&["device.gemm_search=true"], &["device.gemm_search", "set device.device to cuda"]),
        (&["device.device=cuda", "device.kernel=attention=sm70"], &["attention=sm70", "sm90, sm80, portable"]),
        (&["model.heads=3"], &["128", "heads = 3"]),
        (&["model.vocab_size=100"], &["vocab_size = 100", "256 ids"]),
        (&["train.seq_len=300", "model.max_positions=256"], &["seq_len = 300", "max_positions = 256"]),
        (&["model.layers=1000000000000", "model.hidden=1000000000000"], &["beyond any machine"]),
        (&["model.vocab_size=3000000000"], &["vocab_size = 3000000000"]),
    ];
    for (assignments, parts) in cases {
        assert_contains(&refusal(sets(assignments)), parts);
    }
}

#[test]
fn dependent_values_follow_what_they_depend_on() {
    let config = sets(&["model.heads=4", "train.seq_len=512", "data.tokenizer=bpe:2048"]).unwrap();
    assert_eq!((config.model.kv_heads, config.model.max_positions, config.model.vocab_size), (4, 512, 2048));
    let config = sets(&["model.heads=4", "model.kv_heads=2", "model.vocab_size=300", "train.seq_len=64"]).unwrap();
    assert_eq!((config.model.kv_heads, config.model.max_positions, config.model.vocab_size), (2, 256, 300));
    let bytes = sets(&["model.preset=gpt2", "data.tokenizer=bytes"]).unwrap();
    assert_eq!(bytes.model.vocab_size, 256);
    let layers = Layers::new().flag("--tokenizer", "data.tokenizer", "some/tokenizer.json").unwrap();
    let config = Config::resolve(layers, |path| Ok(path.to_string_lossy().len())).unwrap();
    let TokenizerChoice::File(path) = &config.data.tokenizer else { panic!("a file, not {:?}", config.data.tokenizer) };
    assert!(path.is_absolute() && path.ends_with("some/tokenizer.json"));
    assert_eq!(config.model.vocab_size, path.to_string_lossy().len());
}

#[test]
fn the_shape_of_loaded_weights_covers_the_preset_and_stays() {
    let weights = ModelConfig { layers: 3, preset: None, ..Config::preset("tiny").unwrap().model };
    let layers = Layers::new()
        .model("the model in `a`", &weights)
        .unwrap()
        .flag("--seq-len", "train.seq_len", "128")
        .unwrap()
        .flag("--tokenizer", "data.tokenizer", "bpe:2048")
        .unwrap();
    assert_contains(&refusal(Config::resolve(layers.clone(), no_file)), &["vocab_size = 256", "bpe:2048"]);
    let layers = Layers::new().model("the model in `a`", &weights).unwrap();
    let config = Config::resolve(layers, no_file).unwrap();
    assert_eq!(ModelConfig { preset: None, ..config.model }, weights);
}

#[test]
fn text_stays_text() {
    let config = sets(&["data.path=2024", "train.init=true"]).unwrap();
    assert!(config.data.path.unwrap().ends_with("2024") && config.train.init.unwrap().ends_with("true"));
    assert_eq!(sets(&["data.documents=\"respect\""]).unwrap().data.documents, Documents::Respect);
    assert_eq!(sets(&["train.warmup=7"]).unwrap().train.warmup, Warmup::Steps(7));
    assert_eq!(sets(&["train.warmup=0.25"]).unwrap().train.warmup, Warmup::Fraction(0.25));
    let injected = sets(&["train.seed=1\nlr=2"]);
    assert_contains(&refusal(injected), &["train.seed"]);
    let layers = Layers::new().set("train.init=a").unwrap().flag("--init", "train.init", "b").unwrap();
    assert_eq!((layers.text_of("train.init"), layers.text_of("data.path")), (Some("b"), None));
}

#[test]
fn a_continued_run_may_change_threads_and_checkpoints_only() {
    let recorded = sets(&["train.steps=10"]).unwrap();
    let same = sets(&["train.steps=10", "device.threads=7", "train.checkpoint_every=3"]).unwrap();
    assert_eq!(same.differences(&recorded).unwrap(), []);
    same.check_same_run(&recorded, "`run/config.toml`").unwrap();

    let other = sets(&["train.tokens=1000000", "train.lr=1e-3"]).unwrap();
    let keys: Vec<&str> = other.differences(&recorded).unwrap().iter().map(|difference| difference.key).collect();
    assert_eq!(keys, ["train.steps", "train.tokens", "train.lr"]);
    let error = other.check_same_run(&recorded, "`run/config.toml`").unwrap_err();
    assert_contains(
        &error.to_string(),
        &["run/config.toml", "train.lr is 0.001 here and 0.002 there", "train.steps is not set here and 10 there"],
    );
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn the_table_of_keys_is_the_fields_of_the_configuration() {
    let mut config = Config::preset("tiny").unwrap();
    // Every optional value given, so that every field is serialised.
    config.data.path = Some("a".into());
    let train = &mut config.train;
    (train.steps, train.tokens, train.flops) = (Some(1), Some(1), Some(1.0));
    (train.patch_fraction, train.step_fraction) = (Some(0.5), Some(0.5));
    (train.patch_sizes, train.patch_shares) = (Some(vec![2]), Some(vec![1.0]));
    train.stochastic_rounding = Some(true);
    (train.micro_batch, train.init, config.device.threads) = (Some(1), Some("a".into()), Some(1));
    (config.device.kernel, config.device.graph, config.device.gemm_search) =
        (Some("a".into()), Some(false), Some(true));
    let table = config.to_table().unwrap();
    let fields = table
        .iter()
        .flat_map(|(section, entries)| entries.as_table().unwrap().keys().map(move |name| format!("{section}.{name}")));
    let mut fields: Vec<String> = fields.collect();
    let mut keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    fields.sort();
    keys.sort();
    assert_eq!(fields, keys);
}

#[test]
fn files_are_read_and_missing_ones_are_failures() {
    let error = Layers::new().file(Path::new("no such folder/a.toml")).unwrap_err();
    assert_contains(&error.to_string(), &["cannot read the configuration `no such folder/a.toml`"]);
    assert_eq!(error.exit_code(), 1);
}
