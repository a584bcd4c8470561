//! Tokenizers on plain and odd text: nothing is lost, pieces change no id, what is saved loads alike.

use std::path::Path;

use serde_json::{Value, json};

use super::{SplitMix64, Text, Tokenizer};
use crate::config::TokenizerChoice;

const ODD: [&str; 12] = [
    "",
    " ",
    "\n",
    "\r\n\r\n",
    " leading and trailing ",
    "tabs\tand\r\nlines \n\n  \n indented\n",
    "naïve café, Ærøskøbing",
    "日本語のテキスト",
    "emoji 👩‍👩‍👧‍👦🏴󠁧󠁢󠁳󠁣󠁴󠁿 and flags 🇩🇪",
    "it's they'll I'd 12345 ... !?",
    "null \0 and control \u{7f}\u{85}\u{2028} characters \u{a0}.",
    "<|endoftext|> in the text\u{feff}",
];

fn sample_text() -> Text {
    let verses = "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n\n\
        Rough winds do shake the darling buds of May,\n  And summer's lease hath all too short a date;\n";
    Text::from_documents("a test", [verses.repeat(20), ODD.concat()]).unwrap()
}

/// Lines made of words, spaces, letters of several scripts and line ends, long enough for several pieces.
fn random_text(seed: u64, bytes: usize) -> String {
    let parts = [
        "a",
        "the",
        "'s",
        "'ll",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "9",
        "42",
        "!",
        "...",
        "é",
        "日",
        "\u{a0}",
        "\u{2028}",
        "👍",
        "<|endoftext|>",
    ];
    let mut generator = SplitMix64::from_key(&[seed]);
    let mut text = String::new();
    while text.len() < bytes {
        text.push_str(parts[generator.below(parts.len() as u64) as usize]);
    }
    text
}

fn round_trips(tokenizer: &Tokenizer) {
    for text in ODD {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id)).sum();
        assert_eq!(bytes, text.len(), "{text:?}");
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary()));
    }
}

/// The same ids, identity and vocabulary after a round over `tokenizer.json`.
fn survives_saving(tokenizer: &Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    for path in [folder.path().to_path_buf(), folder.path().join("tokenizer.json")] {
        let loaded = Tokenizer::load(&path).unwrap();
        assert_eq!(loaded.identity(), tokenizer.identity());
        assert_eq!(loaded.vocabulary(), tokenizer.vocabulary());
        for text in ODD {
            assert_eq!(loaded.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        }
    }
}

fn description(tokenizer: &Tokenizer) -> Value {
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    let content = std::fs::read(folder.path().join("tokenizer.json")).unwrap();
    serde_json::from_slice(&content).unwrap()
}

fn load_description(description: &Value) -> crate::Result<Tokenizer> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, description.to_string()).unwrap();
    Tokenizer::load(&path)
}

/// Ids as the library itself gives them for the whole text.
fn library_ids(description: &Value, text: &str) -> Vec<i32> {
    let library = tokenizers::Tokenizer::from_bytes(description.to_string()).unwrap();
    let encoding = library.encode(text, false).unwrap();
    encoding.get_ids().iter().map(|&id| id as i32).collect()
}

#[test]
fn bytes_are_their_own_ids() {
    let tokenizer = Tokenizer::bytes().unwrap();
    assert_eq!(tokenizer.vocabulary(), 256);
    round_trips(&tokenizer);
    survives_saving(&tokenizer);
    for text in ODD {
        let ids: Vec<i32> = text.bytes().map(i32::from).collect();
        assert_eq!(tokenizer.encode(text).unwrap(), ids);
        assert_eq!(library_ids(&description(&tokenizer), text), ids);
    }
}

#[test]
fn torn_utf8_decodes_to_replacement_characters() {
    let tokenizer = Tokenizer::bytes().unwrap();
    let mut ids = tokenizer.encode("aé").unwrap();
    ids.pop();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a\u{fffd}");
    for id in [256, -1, -100] {
        let message = tokenizer.decode(&[0, id]).unwrap_err().to_string();
        assert!(message.contains(&id.to_string()), "{message}");
        assert_eq!(tokenizer.token_bytes(id), 0);
    }
}

#[test]
fn trained_bpe_has_the_size_asked_for_and_loses_nothing() {
    let text = sample_text();
    for size in [257, 300, 320] {
        let tokenizer = Tokenizer::new(&TokenizerChoice::Bpe(size), &text).unwrap();
        assert_eq!(tokenizer.vocabulary(), size);
        round_trips(&tokenizer);
        survives_saving(&tokenizer);
    }
    let tokenizer = Tokenizer::train(&text, 320).unwrap();
    assert_eq!(tokenizer.identity(), Tokenizer::train(&text, 320).unwrap().identity());
    let document = text.documents().next().unwrap();
    assert!(tokenizer.encode(document).unwrap().len() * 2 < document.len());
}

#[test]
fn a_vocabulary_that_cannot_be_made_says_what_came() {
    let text = Text::from_documents("a test", ["aa aa bb bb"]).unwrap();
    let message = Tokenizer::train(&text, 5000).unwrap_err().to_string();
    let reached: usize = message
        .split("gives only ")
        .nth(1)
        .and_then(|rest| rest.split(':').next())
        .and_then(|number| number.parse().ok())
        .unwrap();
    assert!(message.contains("5000") && (257..300).contains(&reached), "{message}");
    assert!(message.contains(&format!("`bpe:{reached}`")), "{message}");
    assert_eq!(Tokenizer::train(&text, reached).unwrap().vocabulary(), reached);
    assert!(Tokenizer::train(&text, 256).unwrap_err().is_usage());
}

/// Documents are encoded in pieces; the ids must be those of the whole, whatever stands at the cuts.
#[test]
fn pieces_change_no_id() {
    // Trained on runs of spaces and line ends, so that a cut within one would show.
    let text = Text::from_documents("a test", [random_text(100, 50_000)]).unwrap();
    let trained = Tokenizer::train(&text, 320).unwrap();
    let varied = |change: &dyn Fn(&mut Value)| {
        let mut varied = description(&trained);
        change(&mut varied);
        load_description(&varied).unwrap()
    };
    let before = |step: Value, use_regex: bool| {
        varied(&|description| {
            let mut byte_level = description["pre_tokenizer"].clone();
            byte_level["use_regex"] = use_regex.into();
            description["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [step, byte_level]});
        })
    };
    let with_end = varied(&|description| {
        description["added_tokens"] = json!([{
            "id": 320, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true
        }]);
    });
    let digits = json!({"type": "Digits", "individual_digits": true});
    let split = |pattern: &str| {
        json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false
        })
    };
    let tokenizers = [
        trained.clone(),
        with_end.clone(),
        before(digits, true),
        // Two that a cut would change, so documents must stay whole: lines with their end, groups of three.
        before(split("[^\\n]*\\n+"), false),
        before(split("(?s).{1,3}"), true),
    ];
    for tokenizer in &tokenizers {
        let description = description(tokenizer);
        for seed in 0..4 {
            let text = random_text(seed, 5000);
            let ids = library_ids(&description, &text);
            for size in [1, 100, 3000, 1 << 16] {
                let pieces = tokenizer.encode_in_pieces(&[&text], size).unwrap();
                assert_eq!(pieces, std::slice::from_ref(&ids), "pieces of {size}");
            }
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
    let end = with_end.encode("a<|endoftext|>").unwrap();
    assert_eq!(*end.last().unwrap(), 320);
    assert_eq!(with_end.token_bytes(320), 13);
}

#[test]
fn documents_are_encoded_apart() {
    let tokenizer = Tokenizer::train(&sample_text(), 320).unwrap();
    let long = random_text(9, 200_000);
    let documents = ["lovely and", &long, "", " more temperate"];
    let encoded = tokenizer.encode_documents(&documents).unwrap();
    for (ids, document) in encoded.iter().zip(documents) {
        assert_eq!(*ids, tokenizer.encode(document).unwrap());
    }
    assert!(encoded[2].is_empty());
}

#[test]
fn the_layout_of_gpt2_is_read() {
    let trained = Tokenizer::train(&sample_text(), 300).unwrap();
    let model = &description(&trained)["model"];
    let mut vocabulary = model["vocab"].clone();
    vocabulary["<|endoftext|>"] = 300.into();
    let merges: Vec<String> = model["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let missing = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("merges.txt"), "{missing}");
    std::fs::write(folder.path().join("vocab.json"), vocabulary.to_string()).unwrap();
    let merges = format!("#version: 0.2\n{}", merges.concat());
    std::fs::write(folder.path().join("merges.txt"), merges).unwrap();

    let tokenizer = Tokenizer::new(&TokenizerChoice::File(folder.path().into()), &sample_text()).unwrap();
    assert_eq!(tokenizer.vocabulary(), 301);
    round_trips(&tokenizer);
    survives_saving(&tokenizer);
    let text = "Shall I compare thee\n to a summer's day?";
    assert_eq!(tokenizer.encode(text).unwrap(), trained.encode(text).unwrap());
    assert_eq!(tokenizer.encode("<|endoftext|>").unwrap(), [300]);
}

/// SentencePiece's layout: U+2581 for a space, bytes as `<0x..>`.
#[test]
fn sentencepiece_layout_is_read() {
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..256 {
        vocabulary.insert(format!("<0x{byte:02X}>"), byte.into());
    }
    for (id, piece) in ["\u{2581}", "a", "b", "\u{2581}a"].into_iter().enumerate() {
        vocabulary.insert(piece.into(), (256 + id).into());
    }
    let description = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [], "pre_tokenizer": null, "post_processor": null,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}
        ]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": [["\u{2581}", "a"]]
        }
    });
    let tokenizer = load_description(&description).unwrap();
    let ids = tokenizer.encode("a b\né a").unwrap();
    assert_eq!(ids, [259, 256, 258, 10, 0xC3, 0xA9, 259]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a b\né a");
    // One more than the text's 8 bytes: the space that is set before it.
    let bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id)).sum();
    assert_eq!(bytes, 9);
}

#[test]
fn tokenizers_that_lose_text_are_refused() {
    let bytes = description(&Tokenizer::bytes().unwrap());
    let mut dropout = bytes.clone();
    dropout["model"]["dropout"] = json!(0.1);
    let message = load_description(&dropout).unwrap_err().to_string();
    assert!(message.contains("dropout"), "{message}");

    let mut word_level = bytes.clone();
    word_level["model"] = json!({"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"});
    let message = load_description(&word_level).unwrap_err().to_string();
    assert!(message.contains("WordLevel"), "{message}");

    let mut without_e = bytes;
    without_e["model"]["vocab"].as_object_mut().unwrap().remove("e");
    let tokenizer = load_description(&without_e).unwrap();
    assert!(tokenizer.encode("good").is_ok());
    let message = tokenizer.encode("better").unwrap_err().to_string();
    assert!(message.contains("loses text"), "{message}");
}

#[test]
fn what_is_no_tokenizer_is_refused() {
    assert!(Tokenizer::load(Path::new("no/such/tokenizer.json")).unwrap_err().to_string().contains("no/such"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    for content in ["", "text", "{}", "[1, 2]", "{\"model\": {\"type\": \"BPE\"}}"] {
        std::fs::write(&path, content).unwrap();
        let message = Tokenizer::load(&path).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json"), "{message}");
    }
}
