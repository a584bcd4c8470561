//! What comes out of a run is an ordinary model: `eval`, `generate`, and the layout that transformers reads.

use std::process::Stdio;

use serde_json::Value;

use crate::run::{Place, text};

#[test]
fn an_evaluation_repeats_what_training_measured() {
    let place = Place::new();
    for tokenizer in ["bytes", "bpe:300"] {
        let out = format!("run-{tokenizer}");
        place.train(&out, &[&format!("--tokenizer={tokenizer}")]).ok();
        let evaluated = place.run(&["eval", &out, "--json", "--threads=2"]).ok();
        let found: Value = serde_json::from_str(&evaluated.out).unwrap();
        let measured = place.metrics(&out).last().unwrap().val_loss.unwrap();
        assert_eq!(found["loss"].as_f64(), Some(measured));
        assert!((found["perplexity"].as_f64().unwrap() - measured.exp()).abs() < 1e-9);
        assert_eq!(found["tokens"], 4 * 16);
        let bits = measured * 64.0 / std::f64::consts::LN_2 / found["bytes"].as_f64().unwrap();
        assert!((found["bits_per_byte"].as_f64().unwrap() - bits).abs() < 1e-9);
        let lost = place.path(&format!("{out}/data"));
        std::fs::remove_dir_all(lost).unwrap();
        let again = place.run(&["eval", &out, "--json"]).ok();
        let again: Value = serde_json::from_str(&again.out).unwrap();
        assert_eq!((&again["loss"], &again["bytes"]), (&found["loss"], &found["bytes"]));
    }
    std::fs::write(place.path("other.txt"), text(3000)).unwrap();
    let whole = place.run(&["eval", "run-bytes", "--data=other.txt", "--json"]).ok();
    let whole: Value = serde_json::from_str(&whole.out).unwrap();
    assert_eq!(whole["tokens"], std::fs::metadata(place.path("other.txt")).unwrap().len() - 1);
    let sentence = place.run(&["eval", "run-bytes/model", "--data=other.txt", "--windows=3"]).ok();
    assert!(sentence.out.contains("other.txt") && sentence.out.contains("perplexity"), "{}", sentence.out);
    place.run(&["eval", "run-bytes", "--data=missing"]).fails(1, &["missing"]);
    place.run(&["eval", "run-bytes", "--threads=0"]).fails(2, &["--threads 0"]);
}

#[test]
fn generation_follows_its_seed_and_its_settings() {
    let place = Place::new();
    place.train("run", &["--steps=150", "--lr=1e-2"]).ok();
    let generate = |flags: &[&str]| place.run(&[&["generate", "run", "--prompt=O, thou "], flags].concat()).ok().out;
    let first = generate(&["--max-tokens=60", "--seed=1"]);
    assert!(first.starts_with("O, thou ") && first.ends_with('\n') && first.chars().count() > 30, "{first}");
    assert_eq!(first, generate(&["--max-tokens=60", "--seed=1", "--threads=2"]));
    assert_ne!(first, generate(&["--max-tokens=60", "--seed=2"]));
    let greedy = generate(&["--max-tokens=40", "--temperature=0"]);
    assert_eq!(greedy, generate(&["--max-tokens=40", "--top-k=1"]));
    assert_eq!(greedy, generate(&["--max-tokens=40", "--top-p=0.0001", "--seed=9"]));
    assert_eq!(generate(&["--max-tokens=0"]), "O, thou \n");
    place.run(&["generate", "run", "--temperature=-1"]).fails(2, &["temperature", "-1"]);
    place.run(&["generate", "run", "--top-k=0"]).fails(2, &["top-k"]);
    place.run(&["generate", "run", "--top-p=2"]).fails(2, &["top-p", "2"]);
    place.run(&["generate", "run", "--prompt="]).fails(2, &["prompt"]);
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let place = Place::new();
    place.train("run", &[]).ok();
    let mut command = place.command(&["generate", "run", "--max-tokens=2000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !said.contains("panic"), "{said}");
}

#[test]
fn the_layout_is_the_one_that_transformers_reads() {
    let place = Place::new();
    for (dialect, kind, embedding) in [
        ("llama", "LlamaForCausalLM", "model.embed_tokens.weight"),
        ("gpt2", "GPT2LMHeadModel", "transformer.wte.weight"),
    ] {
        let tied = if dialect == "gpt2" { "--set=model.tied_head=true" } else { "--set=model.tied_head=false" };
        place.train(dialect, &[&format!("--set=model.dialect={dialect}"), tied]).ok();
        let config: Value = serde_json::from_slice(&place.read(&format!("{dialect}/model/config.json"))).unwrap();
        assert_eq!(config["architectures"][0], kind);
        let weights = place.read(&format!("{dialect}/model/model.safetensors"));
        let weights = safetensors::SafeTensors::deserialize(&weights).unwrap();
        assert_eq!(weights.tensor(embedding).unwrap().shape(), [256, 16]);
        let tokenizer = place.path(dialect).join("model/tokenizer.json");
        let tokenizer = tokenizers::Tokenizer::from_file(tokenizer).unwrap();
        assert_eq!(tokenizer.encode("Ab\n", false).unwrap().get_ids(), [65, 98, 10]);
        place.run(&["generate", &format!("{dialect}/model"), "--max-tokens=5"]).ok();
    }
}
