//! Text as a list of documents: the text that ships with the program, one file, or a folder of files.
//! A `.txt`, `.text` or `.md` file is one document, a line of a `.jsonl` file with a `text` field is one document.
//! The end of the text, from a line's start on, is set aside for validation.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Documents one after another in one string.
#[derive(Clone, Debug)]
pub struct Text {
    name: String,
    content: String,
    /// Byte offset of each document's start; never empty, strictly increasing, the first is 0.
    starts: Vec<usize>,
}

impl Text {
    /// The text that ships with the program: 38 plays of Shakespeare, 5 MB of ASCII, one document.
    #[cfg(feature = "program")]
    pub fn shipped() -> Self {
        Text {
            name: "the plays of Shakespeare that ship with patchgpt".into(),
            content: include_str!("../../data/shakespeare_plays.txt").into(),
            starts: vec![0],
        }
    }

    /// Loads a text file (any name; `.jsonl` is read line by line) or, recursively and sorted by path, every
    /// `.txt`, `.text`, `.md` and `.jsonl` file of a folder. Links to folders are not followed.
    ///
    /// # Errors
    /// A path that is not there, a folder without such files, text that is empty or not UTF-8, a `.jsonl` line
    /// that is not an object with a `text` string.
    pub fn load(path: &Path) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(Error::io("read the text", path))?;
        let mut documents = Documents::default();
        if kind.is_dir() {
            let files = text_files(path)?;
            if files.is_empty() {
                return Err(Error::Data(format!(
                    "the folder `{}` holds no .txt, .text, .md or .jsonl file: name a folder with text, or a file",
                    path.display()
                )));
            }
            for file in &files {
                documents.read(file)?;
            }
        } else {
            documents.read(path)?;
        }
        documents.into_text(path.display().to_string())
    }

    /// A text from documents in memory; empty ones are left out. `name` stands in error messages.
    ///
    /// # Errors
    /// No document, or only empty ones.
    pub fn from_documents<S: AsRef<str>>(name: &str, documents: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut collected = Documents::default();
        for document in documents {
            collected.push(document.as_ref());
        }
        collected.into_text(name.into())
    }

    /// Where the text comes from, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of all documents together.
    pub fn byte_count(&self) -> usize {
        self.content.len()
    }

    /// How many documents there are.
    pub fn document_count(&self) -> usize {
        self.starts.len()
    }

    /// The documents in order.
    pub fn documents(&self) -> impl Iterator<Item = &str> {
        let ends = self.starts[1..].iter().copied();
        self.starts.iter().zip(ends.chain([self.content.len()])).map(|(&start, end)| &self.content[start..end])
    }

    /// Divides the text into training text and validation text. The cut is `fraction` of the bytes before the end,
    /// moved on to the next line end or document start (back to the last one if there is none), so that neither
    /// part begins within a line.
    ///
    /// # Errors
    /// A fraction outside (0, 1), or a text of a single line, which cannot be divided.
    pub fn split(mut self, fraction: f64) -> Result<(Text, Text)> {
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(Error::Config(format!(
                "the validation fraction must lie between 0 and 1, both excluded, and is {fraction}: try 0.1"
            )));
        }
        let Some(cut) = self.cut_near((self.content.len() as f64 * (1.0 - fraction)) as usize) else {
            return Err(Error::Data(format!(
                "{} has {} bytes in a single line, so no part of it can be set aside for validation: \
                 training needs a text of several lines or several documents",
                self.name,
                self.content.len()
            )));
        };
        let content = self.content.split_off(cut);
        let first = self.starts.partition_point(|&start| start < cut);
        let moved = self.starts.split_off(first);
        let mut starts: Vec<usize> = moved.into_iter().map(|start| start - cut).collect();
        if starts.first() != Some(&0) {
            starts.insert(0, 0);
        }
        let validation = Text { name: self.name.clone(), content, starts };
        Ok((self, validation))
    }

    /// The first offset at or after `wanted` that follows a line end or starts a document, neither the start nor the
    /// end of the text; else the last one before.
    fn cut_near(&self, wanted: usize) -> Option<usize> {
        let bytes = self.content.as_bytes();
        // `wanted` itself may already be a line's start, hence the search from the byte before it.
        let from = wanted.saturating_sub(1);
        let line = bytes[from..].iter().position(|&byte| byte == b'\n');
        let line = line.map(|offset| from + offset + 1);
        let inside = |&cut: &usize| cut > 0 && cut < bytes.len();
        let document = self.starts[self.starts.partition_point(|&start| start < wanted)..].first().copied();
        if let Some(cut) = line.filter(inside).into_iter().chain(document.filter(inside)).min() {
            return Some(cut);
        }
        let before = wanted.min(bytes.len().saturating_sub(1));
        let line = bytes[..before].iter().rposition(|&byte| byte == b'\n');
        let line = line.map(|offset| offset + 1);
        let document = self.starts.iter().rev().find(|&&start| start < wanted);
        line.filter(inside).max(document.copied().filter(inside))
    }
}

/// Documents while they are being read.
#[derive(Default)]
struct Documents {
    content: String,
    starts: Vec<usize>,
}

impl Documents {
    fn push(&mut self, document: &str) {
        if !document.is_empty() {
            self.starts.push(self.content.len());
            self.content.push_str(document);
        }
    }

    fn read(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).map_err(Error::io("read the text", path))?;
        let content = String::from_utf8(bytes).map_err(|error| {
            let offset = error.utf8_error().valid_up_to();
            Error::Data(format!(
                "`{}` is not UTF-8 text: the byte at offset {offset} is 0x{:02X}, which cannot stand there; \
                 convert the file to UTF-8 or leave it out",
                path.display(),
                error.as_bytes()[offset]
            ))
        })?;
        if has_extension(path, &["jsonl"]) {
            for (index, line) in content.lines().enumerate() {
                if !line.trim().is_empty() {
                    self.push(&json_line(path, index + 1, line)?);
                }
            }
        } else {
            self.push(&content);
        }
        Ok(())
    }

    fn into_text(self, name: String) -> Result<Text> {
        if self.content.is_empty() {
            return Err(Error::Data(format!("{name} is empty: training and evaluation need text")));
        }
        Ok(Text { name, content: self.content, starts: self.starts })
    }
}

/// The `text` of one line of a `.jsonl` file; other fields are ignored.
fn json_line(path: &Path, number: usize, line: &str) -> Result<String> {
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
    }
    serde_json::from_str::<Line>(line).map(|line| line.text).map_err(|error| {
        Error::Data(format!(
            "line {number} of `{}` is not a JSON object with a \"text\" string: {error}",
            path.display()
        ))
    })
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|found| extensions.iter().any(|extension| found.eq_ignore_ascii_case(extension)))
}

/// Every text file under `folder`, sorted by path.
fn text_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map_err(Error::io("read the folder", &folder))?;
        for entry in entries {
            let entry = entry.map_err(Error::io("read the folder", &folder))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(Error::io("read the folder", &folder))?;
            if kind.is_dir() {
                folders.push(path);
            } else if has_extension(&path, &["txt", "text", "md", "jsonl"]) && path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(documents: &[&str]) -> Text {
        Text::from_documents("a test", documents).unwrap()
    }

    fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn the_split_falls_on_a_line_end() {
        let (training, validation) = text(&["one\ntwo\nthree\nfour\n"]).split(0.5).unwrap();
        assert_eq!(training.documents().collect::<Vec<_>>(), ["one\ntwo\nthree\n"]);
        assert_eq!(validation.documents().collect::<Vec<_>>(), ["four\n"]);
    }

    #[test]
    fn a_cut_that_already_is_a_line_start_stays() {
        let (training, validation) = text(&["aaaa\nbbbb\n"]).split(0.5).unwrap();
        assert_eq!(training.documents().collect::<Vec<_>>(), ["aaaa\n"]);
        assert_eq!(validation.documents().collect::<Vec<_>>(), ["bbbb\n"]);
    }

    #[test]
    fn the_split_moves_back_when_no_line_end_follows() {
        let (training, validation) = text(&["a\nb\nlong last line"]).split(0.1).unwrap();
        assert_eq!(training.documents().collect::<Vec<_>>(), ["a\nb\n"]);
        assert_eq!(validation.documents().collect::<Vec<_>>(), ["long last line"]);
        let (training, _) = text(&["a\nb\nlong last line\n"]).split(0.1).unwrap();
        assert_eq!(training.documents().collect::<Vec<_>>(), ["a\nb\n"]);
    }

    #[test]
    fn documents_are_kept_and_divided_by_the_split() {
        let all = text(&["one\n", "", "two\nthree\n", "four"]);
        assert_eq!(all.document_count(), 3);
        let (training, validation) = all.clone().split(0.6).unwrap();
        assert_eq!(training.documents().collect::<Vec<_>>(), ["one\n", "two\n"]);
        assert_eq!(validation.documents().collect::<Vec<_>>(), ["three\n", "four"]);
        let (training, validation) = text(&["no line end", "nor here"]).split(0.4).unwrap();
        assert_eq!(training.documents().collect::<Vec<_>>(), ["no line end"]);
        assert_eq!(validation.documents().collect::<Vec<_>>(), ["nor here"]);
    }

    /// Every text and fraction: nothing is lost, both parts hold something, no line is torn.
    #[test]
    fn every_split_keeps_every_byte() {
        let pieces = ["é\r\n", "\n", "plain line\n", "日本\n", "x"];
        for count in 2..12 {
            let content: String = (0..count).map(|i| pieces[(i * 7 + count) % 5]).collect();
            for percent in 1..100 {
                let Ok((training, validation)) = text(&[&content]).split(f64::from(percent) / 100.0) else {
                    assert!(content.trim_end_matches('\n').find('\n').is_none());
                    continue;
                };
                let first: String = training.documents().collect();
                let last: String = validation.documents().collect();
                assert!(first.ends_with('\n') && !last.is_empty());
                assert_eq!(first + &last, content);
            }
        }
    }

    #[test]
    fn what_cannot_be_split_is_an_error() {
        assert!(message(text(&["one line"]).split(0.1)).contains("single line"));
        assert!(message(text(&["one line\n"]).split(0.1)).contains("single line"));
        for fraction in [0.0, 1.0, -0.1, 2.0, f64::NAN] {
            let error = text(&["a\nb\n"]).split(fraction).unwrap_err();
            assert!(error.is_usage(), "{error}");
        }
    }

    #[test]
    fn a_folder_is_read_in_order_and_recursively() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        write("b.txt", b"second\n");
        write("a/deep.MD", b"first\n");
        write("c.jsonl", b"{\"text\": \"third\\n\", \"id\": 1}\n\n{\"text\": \"\"}\n{\"text\":\"fourth\"}\n");
        write("d.text", "fünfte".as_bytes());
        write("ignored.bin", &[0xFF, 0]);
        write("empty.txt", b"");
        let loaded = Text::load(folder.path()).unwrap();
        assert_eq!(loaded.documents().collect::<Vec<_>>(), ["first\n", "second\n", "third\n", "fourth", "fünfte"]);
        let one = Text::load(&folder.path().join("b.txt")).unwrap();
        assert_eq!(one.documents().collect::<Vec<_>>(), ["second\n"]);

        write("c.jsonl", b"{\"text\": \"fine\"}\n{\"txt\": \"wrong\"}\n");
        let error = message(Text::load(folder.path()));
        assert!(error.contains("line 2") && error.contains("c.jsonl"), "{error}");
        write("c.jsonl", b"caf\xE9");
        let error = message(Text::load(folder.path()));
        assert!(error.contains("offset 3") && error.contains("0xE9"), "{error}");
    }

    #[test]
    fn missing_and_empty_paths_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.txt");
        assert!(message(Text::load(&missing)).contains("missing.txt"));
        assert!(message(Text::load(folder.path())).contains("holds no .txt"));
        std::fs::write(folder.path().join("empty.txt"), "").unwrap();
        assert!(message(Text::load(folder.path())).contains("is empty"));
        assert!(message(Text::load(&folder.path().join("empty.txt"))).contains("is empty"));
    }

    #[cfg(feature = "program")]
    #[test]
    fn the_shipped_text_splits_at_a_tenth() {
        let all = Text::shipped();
        let bytes = all.byte_count();
        let (training, validation) = all.split(0.1).unwrap();
        assert_eq!(training.byte_count() + validation.byte_count(), bytes);
        let share = validation.byte_count() as f64 / bytes as f64;
        assert!((share - 0.1).abs() < 1e-3, "{share}");
        assert!(training.documents().next().unwrap().ends_with('\n'));
    }
}
