//! Text to ids and back. Three kinds: `bytes` (256 ids, each its byte), `bpe:N` (byte-level BPE with GPT-2's
//! pre-tokenizer, trained on the training text) and a tokenizer file of the Hugging Face or the GPT-2 layout.
//! A byte-level tokenizer's ids stand for byte strings whose concatenation is the text, so bits per byte are exact.

use std::fmt;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, TokenizerBuilder};

use super::text::Text;
use crate::atomic_file;
use crate::config::TokenizerChoice;
use crate::error::{Error, Result};

/// Text that is encoded as one piece, where the tokenizer allows a cut.
const PIECE_BYTES: usize = 1 << 16;
/// A pair seen once says nothing about the language; merging it would only spell out the training text.
const MINIMUM_PAIR_COUNT: u64 = 2;
/// Ids may leave room for so many times the tokens there are, and for a gap before tokens that were added.
const SPARSEST: u64 = 4;
const LONGEST_GAP: u64 = 1 << 20;

/// How a tokenizer treats text, which decides how encoding can be cut and how ids become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Ids are bytes; no library code runs.
    Bytes,
    /// Ids are byte strings.
    ByteLevel {
        /// The ids of a text spell it exactly: nothing normalizes it or adds a space.
        exact: bool,
        /// A line that follows a non-space character may be encoded apart; see [`line_local`].
        line_local: bool,
    },
    /// Ids are character strings with signs for spaces and single bytes (SentencePiece).
    Characters,
}

/// A tokenizer of any kind.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    kind: Kind,
    /// The bytes of text each id stands for; empty for an id that is not used.
    pieces: Vec<Box<[u8]>>,
    identity: [u8; 32],
}

impl Tokenizer {
    /// The tokenizer that was chosen; `training` is read only by `bpe:N`, which is trained on it.
    ///
    /// # Errors
    /// A file that is not a tokenizer, or a text too small for N ids.
    pub fn new(choice: &TokenizerChoice, training: &Text) -> Result<Self> {
        match choice {
            TokenizerChoice::Bytes => Tokenizer::bytes(),
            TokenizerChoice::Bpe(size) => Tokenizer::train(training, *size),
            TokenizerChoice::File(path) => Tokenizer::load(path),
        }
    }

    /// The tokenizer whose ids are the bytes of the text.
    ///
    /// # Errors
    /// None in practice: the description is built here.
    pub fn bytes() -> Result<Self> {
        let vocabulary: serde_json::Map<String, Value> = byte_characters()
            .iter()
            .enumerate()
            .map(|(byte, character)| (character.to_string(), byte.into()))
            .collect();
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false
        });
        let description = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocabulary, "merges": []
            }
        });
        let inner = tokenizers::Tokenizer::from_bytes(description.to_string());
        Tokenizer::examine(inner.map_err(|error| failure("the bytes", &error))?, "bytes")
    }

    /// Byte-level BPE trained on `text`, with exactly `size` ids.
    ///
    /// # Errors
    /// A size under 257; a text in which too few pairs repeat to make `size` ids.
    pub fn train(text: &Text, size: usize) -> Result<Self> {
        let spec = TokenizerChoice::Bpe(size).to_string();
        if size <= 256 {
            return Err(Error::Config(format!(
                "the tokenizer `{spec}` asks for {size} ids, and byte-level BPE has 257 or more (256 bytes and at least \
                 one merge): ask for example for `bpe:2048`, or for `bytes`"
            )));
        }
        let byte_level = ByteLevel::new(false, false, true);
        let mut inner = TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
            .with_model(BPE::default())
            .with_pre_tokenizer(Some(byte_level))
            .with_decoder(Some(byte_level))
            .build()
            .map_err(|error| failure(&spec, &error))?;
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(size)
            .min_frequency(MINIMUM_PAIR_COUNT)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .show_progress(false)
            .build();
        let pieces: Vec<&str> = text.documents().flat_map(|document| cut_lines(document, PIECE_BYTES)).collect();
        inner.train(&mut trainer, pieces.into_iter()).map_err(|error| failure(&spec, &error))?;
        let description = inner.to_string(false).map_err(|error| failure(&spec, &error))?;
        let inner = tokenizers::Tokenizer::from_bytes(description);
        let tokenizer = Tokenizer::examine(inner.map_err(|error| failure(&spec, &error))?, &spec)?;
        if tokenizer.vocabulary() < size {
            return Err(Error::Tokenizer(format!(
                "the tokenizer `{spec}` asks for {size} ids, and the training text ({} bytes) gives only {}: ask for at \
                 most `bpe:{1}`, or give more text",
                text.byte_count(),
                tokenizer.vocabulary()
            )));
        }
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json`, or a folder that holds one or GPT-2's `vocab.json` and `merges.txt`.
    ///
    /// # Errors
    /// A path that is not there, a file that is not a tokenizer, a tokenizer that loses text (WordPiece, WordLevel) or
    /// encodes at random (BPE dropout).
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut file = path.to_path_buf();
        if path.is_dir() {
            file.push("tokenizer.json");
            let (vocabulary, merges) = (path.join("vocab.json"), path.join("merges.txt"));
            if !file.is_file() && vocabulary.is_file() && merges.is_file() {
                return Tokenizer::examine(gpt2_layout(&vocabulary, &merges)?, &name);
            }
            if !file.is_file() {
                return Err(Error::Tokenizer(format!(
                    "the folder `{name}` holds neither tokenizer.json nor vocab.json with merges.txt: name a folder with \
                     one of them, a tokenizer.json, `bytes` or `bpe:N`"
                )));
            }
        }
        let content = std::fs::read(&file).map_err(Error::io("read the tokenizer", &file))?;
        Tokenizer::examine(parse(&content, &name)?, &name)
    }

    fn examine(mut inner: tokenizers::Tokenizer, name: &str) -> Result<Self> {
        // Before anything that goes through all ids up to the largest.
        check_ids(&inner, name)?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| failure(name, &error))?;
        let text = inner.to_string(false).map_err(|error| failure(name, &error))?;
        let description: Value = serde_json::from_str(&text).map_err(|error| failure(name, &error))?;
        let model = &description["model"];
        let model_type = model["type"].as_str().unwrap_or_default();
        if !["BPE", "Unigram"].contains(&model_type) {
            return Err(Error::Tokenizer(format!(
                "the tokenizer `{name}` is of type {model_type}, which does not keep the whole text (spaces, rare \
                 characters): use one of type BPE or Unigram"
            )));
        }
        if model["dropout"].as_f64().is_some_and(|rate| rate > 0.0) {
            return Err(Error::Tokenizer(format!(
                "the tokenizer `{name}` drops merges at random (dropout {}): set \"dropout\" to null in its file",
                model["dropout"]
            )));
        }
        let byte_level = mentions(&description["pre_tokenizer"], "type", &"ByteLevel".into());
        let pieces = pieces(&inner, byte_level);
        if pieces.is_empty() {
            return Err(Error::Tokenizer(format!("the tokenizer `{name}` has no ids")));
        }
        Ok(Tokenizer {
            kind: kind(&description, byte_level, &pieces),
            identity: *blake3::hash(text.as_bytes()).as_bytes(),
            inner,
            pieces,
        })
    }

    /// Size of the vocabulary: the largest id plus one.
    pub fn vocabulary(&self) -> usize {
        self.pieces.len()
    }

    /// How many UTF-8 bytes of text an id stands for, 0 for an id outside the vocabulary. Exact for byte-level
    /// tokenizers; for SentencePiece the sign for a space counts one byte, also the one it sets before a text.
    pub fn token_bytes(&self, id: i32) -> usize {
        usize::try_from(id).ok().and_then(|id| self.pieces.get(id)).map_or(0, |piece| piece.len())
    }

    /// BLAKE3 of the tokenizer's description: equal exactly for tokenizers that are described alike.
    pub fn identity(&self) -> [u8; 32] {
        self.identity
    }

    /// The ids of one text. No special tokens are added.
    ///
    /// # Errors
    /// Text that the tokenizer cannot represent.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let mut documents = self.encode_documents(&[text])?;
        Ok(documents.pop().unwrap_or_default())
    }

    /// The ids of each document, in parallel over documents and, where that cannot change an id, over pieces of them.
    ///
    /// # Errors
    /// Text that the tokenizer cannot represent.
    pub fn encode_documents(&self, documents: &[&str]) -> Result<Vec<Vec<i32>>> {
        self.encode_in_pieces(documents, PIECE_BYTES)
    }

    /// [`Tokenizer::encode_documents`] with pieces of at least `size` bytes.
    pub(super) fn encode_in_pieces(&self, documents: &[&str], size: usize) -> Result<Vec<Vec<i32>>> {
        let mut pieces: Vec<(usize, &str)> = Vec::new();
        for (index, document) in documents.iter().enumerate() {
            match self.kind {
                Kind::ByteLevel { line_local: true, .. } => {
                    pieces.extend(cut_lines(document, size).map(|piece| (index, piece)))
                }
                _ => pieces.push((index, document)),
            }
        }
        let encoded: Result<Vec<Vec<i32>>> = pieces.par_iter().map(|(_, piece)| self.encode_piece(piece)).collect();
        let mut ids = vec![Vec::new(); documents.len()];
        for ((index, _), mut piece) in pieces.into_iter().zip(encoded?) {
            if ids[index].is_empty() {
                ids[index] = piece;
            } else {
                ids[index].append(&mut piece);
            }
        }
        Ok(ids)
    }

    fn encode_piece(&self, text: &str) -> Result<Vec<i32>> {
        if self.kind == Kind::Bytes {
            return Ok(text.bytes().map(i32::from).collect());
        }
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| Error::Tokenizer(format!("the tokenizer cannot encode: {error}")))?;
        let ids: Vec<i32> = encoding.get_ids().iter().map(|&id| id as i32).collect();
        if let Kind::ByteLevel { exact: true, .. } = self.kind {
            let spelled: usize = ids.iter().map(|&id| self.token_bytes(id)).sum();
            if spelled != text.len() {
                return Err(Error::Tokenizer(format!(
                    "the tokenizer loses text: {} bytes, beginning with {:?}, became ids for {spelled} bytes; its \
                     vocabulary lacks single bytes, so use another tokenizer, `bytes` or `bpe:N`",
                    text.len(),
                    text.chars().take(20).collect::<String>()
                )));
            }
        }
        Ok(ids)
    }

    /// The text of a list of ids. Bytes that are not UTF-8, as at a list's torn end, become U+FFFD.
    ///
    /// # Errors
    /// An id outside the vocabulary.
    pub fn decode(&self, ids: &[i32]) -> Result<String> {
        let piece = |&id: &i32| {
            let piece = usize::try_from(id).ok().and_then(|id| self.pieces.get(id).map(|piece| (id as u32, &**piece)));
            piece.ok_or_else(|| {
                Error::Tokenizer(format!("the id {id} cannot be decoded: the vocabulary has {} ids", self.vocabulary()))
            })
        };
        let pieces: Vec<(u32, &[u8])> = ids.iter().map(piece).collect::<Result<_>>()?;
        if self.kind == Kind::Characters {
            let ids: Vec<u32> = pieces.iter().map(|&(id, _)| id).collect();
            return self
                .inner
                .decode(&ids, false)
                .map_err(|error| Error::Tokenizer(format!("the tokenizer cannot decode: {error}")));
        }
        let bytes: Vec<u8> = pieces.iter().flat_map(|&(_, bytes)| bytes).copied().collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into `folder`. The second names the plain fast tokenizer, so
    /// that `transformers` adds no special tokens of the architecture and does not tidy spaces away.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let name = folder.display().to_string();
        let description = self.inner.to_string(true);
        let description = description.map_err(|error| failure(&name, &error))?;
        atomic_file::replace(&folder.join("tokenizer.json"), description.as_bytes())?;
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
        });
        let config = format!("{config:#}\n");
        atomic_file::replace(&folder.join("tokenizer_config.json"), config.as_bytes())
    }
}

fn failure(name: &str, error: &dyn fmt::Display) -> Error {
    Error::Tokenizer(format!(
        "the tokenizer `{name}` cannot be used: {error}; give `bytes`, `bpe:N`, a tokenizer.json, or a folder with one \
         or with vocab.json and merges.txt"
    ))
}

/// GPT-2's byte-level BPE from its two files.
fn gpt2_layout(vocabulary: &Path, merges: &Path) -> Result<tokenizers::Tokenizer> {
    let name = vocabulary.display().to_string();
    let model = BPE::from_file(&name, &merges.display().to_string()).build().map_err(|error| failure(&name, &error))?;
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
    let end_of_text = "<|endoftext|>";
    if tokenizer.token_to_id(end_of_text).is_some() {
        tokenizer.add_special_tokens(&[AddedToken::from(end_of_text, true)]);
    }
    Ok(tokenizer)
}

/// GPT-2's printable character for each byte: itself where it is printable Latin-1, else the next one from U+0100 on.
fn byte_characters() -> [char; 256] {
    let mut substitute = 0x100;
    std::array::from_fn(|byte| {
        if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
            char::from(byte as u8)
        } else {
            let character = char::from_u32(substitute).unwrap_or_default();
            substitute += 1;
            character
        }
    })
}

/// The tokenizer that a `tokenizer.json` describes. The library that reads it panics on a decoder that is none, so what it would
/// meet is checked before; should it panic all the same, that is an error of the file too.
fn parse(content: &[u8], name: &str) -> Result<tokenizers::Tokenizer> {
    let description: Value = serde_json::from_slice(content).map_err(|error| failure(name, &error))?;
    let decoder = &description["decoder"];
    if !decoder.is_null() && !decoder["type"].is_string() {
        return Err(Error::Tokenizer(format!("the tokenizer `{name}` has a decoder without a type: {decoder}")));
    }
    let read = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(content));
    match read {
        Ok(inner) => inner.map_err(|error| failure(name, &error)),
        Err(_) => {
            Err(Error::Tokenizer(format!("the tokenizer `{name}` is damaged: the library for it cannot read it")))
        }
    }
}

/// Refuses ids so far beyond the number of tokens that a table of them would be mostly empty, and could be of any size.
fn check_ids(inner: &tokenizers::Tokenizer, name: &str) -> Result<()> {
    let ids = inner.get_vocab(false).into_values().chain(inner.get_added_tokens_decoder().into_keys());
    let (count, largest) = ids.fold((0u64, 0), |(count, largest), id| (count + 1, id.max(largest)));
    if u64::from(largest) > SPARSEST * count + LONGEST_GAP {
        return Err(Error::Tokenizer(format!(
            "the tokenizer `{name}` has {count} tokens with ids up to {largest}: so large an id is a mistake in the file"
        )));
    }
    Ok(())
}

/// The bytes every id stands for.
fn pieces(inner: &tokenizers::Tokenizer, byte_level: bool) -> Vec<Box<[u8]>> {
    let characters = byte_characters();
    let byte = |character: char| {
        let byte = characters.iter().position(|&c| c == character);
        byte.map(|byte| byte as u8)
    };
    let spell = |token: &str| -> Box<[u8]> {
        if byte_level {
            let bytes: Option<Box<[u8]>> = token.chars().map(byte).collect();
            return bytes.unwrap_or_else(|| token.as_bytes().into());
        }
        let hexadecimal = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        match hexadecimal.map(|digits| u8::from_str_radix(digits, 16)) {
            Some(Ok(byte)) => [byte].into(),
            _ => token.replace('\u{2581}', " ").into_bytes().into(),
        }
    };
    let mut pieces: Vec<Box<[u8]>> = Vec::new();
    let mut put = |id: u32, piece: Box<[u8]>| {
        let id = id as usize;
        if pieces.len() <= id {
            pieces.resize(id + 1, [].into());
        }
        pieces[id] = piece;
    };
    for (token, id) in inner.get_vocab(false) {
        put(id, spell(&token));
    }
    for (id, token) in inner.get_added_tokens_decoder() {
        put(id, token.content.into_bytes().into());
    }
    pieces
}

fn kind(description: &Value, byte_level: bool, pieces: &[Box<[u8]>]) -> Kind {
    if !byte_level {
        return Kind::Characters;
    }
    let added = description["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let strips = |token: &Value| token["lstrip"] == true || token["rstrip"] == true;
    let exact = description["normalizer"].is_null()
        && !mentions(&description["pre_tokenizer"], "add_prefix_space", &true.into())
        && !added.iter().any(strips);
    let is_bytes = pieces.len() == 256 && pieces.iter().enumerate().all(|(byte, piece)| **piece == [byte as u8]);
    if exact && is_bytes && added.is_empty() {
        return Kind::Bytes;
    }
    Kind::ByteLevel { exact, line_local: exact && line_local(description, added) }
}

/// Whether text may be cut before a line end that follows a non-space character without changing an id. It may with
/// GPT-2's pre-tokenizer: each of its alternatives is either spaces only or ends with a non-space character, so one always
/// ends there, and the only one that looks ahead, `\s+(?!\S)`, begins with a space. Setting digits apart before it looks
/// at single characters and changes nothing about that. Tokens matched in the raw text must not hold a space.
fn line_local(description: &Value, added: &[Value]) -> bool {
    let pre_tokenizer = &description["pre_tokenizer"];
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(pre_tokenizer),
    };
    let gpt2 = |step: &Value| step["type"] == "ByteLevel" && step["use_regex"] != false;
    let spaced = |token: &Value| {
        let content = token["content"].as_str().unwrap_or(" ");
        content.contains(char::is_whitespace)
    };
    steps.split_last().is_some_and(|(last, before)| gpt2(last) && before.iter().all(|step| step["type"] == "Digits"))
        && !added.iter().any(spaced)
}

/// Whether a key with this value stands anywhere in a description.
fn mentions(description: &Value, key: &str, value: &Value) -> bool {
    match description {
        Value::Object(fields) => {
            fields.iter().any(|(name, field)| (name == key && field == value) || mentions(field, key, value))
        }
        Value::Array(items) => items.iter().any(|item| mentions(item, key, value)),
        _ => false,
    }
}

/// Pieces of at least `size` bytes (but the last), cut before a line end that follows a non-space character.
fn cut_lines(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = rest.as_bytes();
        let cut = (size.max(1)..bytes.len())
            .find(|&at| bytes[at] == b'\n' && rest[..at].chars().next_back().is_some_and(|c| !c.is_whitespace()));
        let (piece, after) = rest.split_at(cut.unwrap_or(bytes.len()));
        rest = after;
        Some(piece)
    })
}
