//! Token files: what is written is read, and nothing else is taken for one.

use std::path::PathBuf;

use super::{Dataset, SplitMix64, Text, TokenFile, TokenFileWriter, Tokenizer};
use crate::config::TokenizerChoice;

fn write(path: &std::path::Path, documents: &[&[i32]], vocabulary: usize) -> TokenFile {
    let mut writer = TokenFileWriter::create(path, vocabulary, [7; 32]).unwrap();
    for document in documents {
        writer.push_document(document).unwrap();
    }
    writer.finish().unwrap()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.tokens");
    (folder, path)
}

#[test]
fn ids_of_both_widths_survive() {
    let (_folder, path) = folder();
    for (vocabulary, id_bytes) in [(256, 2), (65_536, 2), (65_537, 4), (1 << 20, 4)] {
        let mut generator = SplitMix64::from_key(&[vocabulary as u64]);
        let mut ids: Vec<i32> = (0..1001).map(|_| generator.below(vocabulary as u64) as i32).collect();
        ids[500] = vocabulary as i32 - 1;
        let file = write(&path, &[&ids[..10], &[], &ids[10..]], vocabulary);
        assert_eq!(file.token_count(), 1001);
        assert_eq!(file.vocabulary(), vocabulary);
        assert_eq!(file.documents(), [0, 10]);
        let bytes = std::fs::metadata(&path).unwrap().len();
        assert_eq!(bytes, 128 + (1001u64 * id_bytes).next_multiple_of(8) + 16);
        let mut read = vec![-1];
        file.read(0..1001, &mut read).unwrap();
        assert_eq!(read[1..], ids);
        read.clear();
        file.read(998..1001, &mut read).unwrap();
        assert_eq!(read, ids[998..]);
        file.read(1001..1001, &mut read).unwrap();
        assert_eq!(read.len(), 3);
        file.verify().unwrap();
        assert!(file.read(999..1002, &mut read).is_err());
        let (start, end) = (5, 4);
        assert!(file.read(start..end, &mut read).is_err());
    }
}

#[test]
fn the_hash_tells_ids_documents_and_vocabularies_apart() {
    let (_folder, path) = folder();
    let mut hashes = std::collections::HashSet::new();
    let same = write(&path, &[&[1, 2, 3]], 10).content_hash();
    assert_eq!(same, write(&path, &[&[1, 2, 3]], 10).content_hash());
    hashes.insert(same);
    hashes.insert(write(&path, &[&[1, 2, 4]], 10).content_hash());
    hashes.insert(write(&path, &[&[1, 2], &[3]], 10).content_hash());
    hashes.insert(write(&path, &[&[1, 2, 3]], 11).content_hash());
    assert_eq!(hashes.len(), 4);
}

#[test]
fn impossible_ids_are_refused() {
    let (_folder, path) = folder();
    let mut writer = TokenFileWriter::create(&path, 10, [0; 32]).unwrap();
    for id in [10, -1, -100] {
        let message = writer.push_document(&[0, id]).unwrap_err().to_string();
        assert!(message.contains(&format!("id {id} ")), "{message}");
    }
    assert!(writer.finish().unwrap_err().to_string().contains("no tokens"));
    assert!(TokenFileWriter::create(&path, 0, [0; 32]).is_err());
    assert!(TokenFileWriter::create(&path, 1 << 40, [0; 32]).is_err());
}

#[test]
fn an_unfinished_file_leaves_the_old_one_and_nothing_else() {
    let (folder, path) = folder();
    write(&path, &[&[1, 2, 3]], 10);
    let before = std::fs::read(&path).unwrap();
    let mut writer = TokenFileWriter::create(&path, 10, [0; 32]).unwrap();
    writer.push_document(&[4; 100]).unwrap();
    drop(writer);
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn every_truncation_is_noticed() {
    let (_folder, path) = folder();
    write(&path, &[&[1, 2, 3], &[4, 5]], 10);
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        assert!(TokenFile::open(&path).is_err(), "{len} bytes");
    }
    std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(TokenFile::open(&path).is_err());
}

/// Each changed byte is either refused when the file is opened or found by its hash.
#[test]
fn every_changed_byte_is_noticed() {
    let (_folder, path) = folder();
    write(&path, &[&[1, 2, 3], &[4, 5]], 10);
    let whole = std::fs::read(&path).unwrap();
    // Two stretches carry nothing: zeros up to byte 128, and from the ids to the table.
    let silent = |at: usize| (104..128).contains(&at) || (138..144).contains(&at);
    for at in (0..whole.len()).filter(|&at| !silent(at)) {
        let mut changed = whole.clone();
        changed[at] ^= 0x40;
        std::fs::write(&path, &changed).unwrap();
        let found = TokenFile::open(&path).and_then(|file| file.verify());
        assert!(found.is_err(), "byte {at}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let (_folder, path) = folder();
    let message = |path: &std::path::Path| TokenFile::open(path).unwrap_err().to_string();
    assert!(message(&path).contains("text.tokens"));
    std::fs::write(&path, "just some text".repeat(50)).unwrap();
    assert!(message(&path).contains("something else"));
    std::fs::write(&path, "").unwrap();
    assert!(message(&path).contains("0 bytes"));
    write(&path, &[&[1, 2, 3]], 10);
    let whole = std::fs::read(&path).unwrap();
    let mut changed = whole.clone();
    changed[8] = 9;
    std::fs::write(&path, &changed).unwrap();
    assert!(message(&path).contains("version 9"));
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(message(&path).contains("truncated"));
    // An id above the vocabulary, as bit rot would leave it, is caught when it is read.
    let mut changed = whole.clone();
    changed[128] = 200;
    std::fs::write(&path, &changed).unwrap();
    let file = TokenFile::open(&path).unwrap();
    let error = file.read(0..3, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("id 200"), "{error}");
}

#[test]
fn a_file_of_another_tokenizer_is_refused() {
    let (_folder, path) = folder();
    let text = Text::from_documents("a test", ["one\ntwo\n", "three\n"]).unwrap();
    let bytes = Tokenizer::bytes().unwrap();
    let file = TokenFile::create(&path, &text, &bytes).unwrap();
    assert_eq!(file.documents(), [0, 8]);
    assert!(TokenFile::open_for(&path, &bytes).is_ok());
    write(&path, &[&[1]], 300);
    let message = TokenFile::open_for(&path, &bytes).unwrap_err().to_string();
    assert!(message.contains("300") && message.contains("256"), "{message}");
    write(&path, &[&[1]], 256);
    let message = TokenFile::open_for(&path, &bytes).unwrap_err().to_string();
    assert!(message.contains("another tokenizer"), "{message}");
}

#[test]
fn a_dataset_is_prepared_and_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("deep/data");
    let text = Text::from_documents("a test", [&"line of text\n".repeat(100)]).unwrap();
    let made = Dataset::prepare(text, 0.1, &TokenizerChoice::Bytes, &place).unwrap();
    assert_eq!(made.training.token_count(), 90 * 13);
    assert_eq!(made.validation.token_count(), 10 * 13);
    let opened = Dataset::open(&place, Tokenizer::bytes().unwrap()).unwrap();
    assert_eq!(opened.training.content_hash(), made.training.content_hash());
    let mut ids = Vec::new();
    opened.validation.read(0..130, &mut ids).unwrap();
    let validation = opened.tokenizer.decode(&ids).unwrap();
    assert_eq!(validation, "line of text\n".repeat(10));
}
