//! A token file: the ids of a text, memory-mapped. Little-endian throughout:
//! `magic [8] | version u32 | bytes per id u32 | vocabulary u64 | ids u64 | documents u64 | content hash [32] |
//! tokenizer hash [32] | zeros up to byte 128 | ids (u16 if the vocabulary has at most 65536, else u32) | zeros up to a
//! multiple of 8 | start of each document u64`. Written to a sibling, forced to disk, then renamed: whole or not there.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::text::Text;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

const MAGIC: [u8; 8] = *b"PATCHTOK";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 128;
/// Text that is encoded at once while a file is made, so that memory does not grow with the text.
const ENCODED_AT_ONCE: usize = 32 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    id_bytes: u32,
    vocabulary: u64,
    tokens: u64,
    documents: u64,
    content_hash: [u8; 32],
    tokenizer_hash: [u8; 32],
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.id_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.vocabulary.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.tokens.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.documents.to_le_bytes());
        bytes[40..72].copy_from_slice(&self.content_hash);
        bytes[72..104].copy_from_slice(&self.tokenizer_hash);
        bytes
    }

    /// The header of a whole file; `Err` says in words what is wrong with it.
    fn parse(file: &[u8]) -> Result<Self, String> {
        let Some(bytes) = file.first_chunk::<HEADER_BYTES>() else {
            return Err(format!(
                "it has {} bytes, fewer than the {HEADER_BYTES} of a header: it is truncated or something else",
                file.len()
            ));
        };
        if bytes[..8] != MAGIC {
            return Err("it does not begin like a token file: it is something else".into());
        }
        let version = u32::from_le_bytes(array(bytes, 8));
        if version != VERSION {
            return Err(format!("it has format version {version}, and this program reads version {VERSION}"));
        }
        let header = Header {
            id_bytes: u32::from_le_bytes(array(bytes, 12)),
            vocabulary: u64::from_le_bytes(array(bytes, 16)),
            tokens: u64::from_le_bytes(array(bytes, 24)),
            documents: u64::from_le_bytes(array(bytes, 32)),
            content_hash: array(bytes, 40),
            tokenizer_hash: array(bytes, 72),
        };
        if header.vocabulary == 0 || header.vocabulary > i32::MAX as u64 {
            return Err(format!("its vocabulary of {} cannot be", header.vocabulary));
        }
        if header.id_bytes != id_bytes(header.vocabulary) {
            return Err(format!(
                "it stores ids in {} bytes, and a vocabulary of {} takes {}",
                header.id_bytes,
                header.vocabulary,
                id_bytes(header.vocabulary)
            ));
        }
        if header.file_bytes() != Some(file.len() as u64) {
            return Err(format!(
                "its header announces {} tokens in {} documents, which do not make a file of {} bytes: it is truncated \
                 or damaged",
                header.tokens,
                header.documents,
                file.len()
            ));
        }
        Ok(header)
    }

    /// Offset of the documents' table.
    fn table(&self) -> Option<u64> {
        let ids = self.tokens.checked_mul(self.id_bytes.into())?;
        ids.checked_next_multiple_of(8)?.checked_add(HEADER_BYTES as u64)
    }

    fn file_bytes(&self) -> Option<u64> {
        self.table()?.checked_add(self.documents.checked_mul(8)?)
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

fn id_bytes(vocabulary: u64) -> u32 {
    if vocabulary <= 1 << 16 { 2 } else { 4 }
}

/// Writes a token file document by document. Nothing stands at the path before [`TokenFileWriter::finish`].
#[derive(Debug)]
pub struct TokenFileWriter {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    header: Header,
    starts: Vec<u64>,
    hasher: blake3::Hasher,
    buffer: Vec<u8>,
    finished: bool,
}

impl TokenFileWriter {
    /// Begins a file for ids below `vocabulary` that the tokenizer of the given identity made.
    ///
    /// # Errors
    /// A folder that cannot be written, a vocabulary that is 0 or larger than `i32::MAX`.
    pub fn create(path: &Path, vocabulary: usize, tokenizer_hash: [u8; 32]) -> Result<Self> {
        if vocabulary == 0 || i32::try_from(vocabulary).is_err() {
            return Err(Error::Tokenizer(format!(
                "a vocabulary of {vocabulary} cannot be: ids are 0 to {} at most",
                i32::MAX - 1
            )));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        let mut file = BufWriter::new(File::create(&partial).map_err(Error::io("write", &partial))?);
        file.write_all(&[0; HEADER_BYTES]).map_err(Error::io("write", &partial))?;
        Ok(TokenFileWriter {
            path: path.into(),
            partial,
            file,
            header: Header {
                id_bytes: id_bytes(vocabulary as u64),
                vocabulary: vocabulary as u64,
                tokens: 0,
                documents: 0,
                content_hash: [0; 32],
                tokenizer_hash,
            },
            starts: Vec::new(),
            hasher: blake3::Hasher::new(),
            buffer: Vec::new(),
            finished: false,
        })
    }

    /// Adds a document; one without tokens is left out.
    ///
    /// # Errors
    /// An id outside the vocabulary, a full disk.
    pub fn push_document(&mut self, ids: &[i32]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let vocabulary = self.header.vocabulary;
        if let Some(id) = ids.iter().find(|&&id| u64::try_from(id).map_or(true, |id| id >= vocabulary)) {
            return Err(Error::Tokenizer(format!("the id {id} is outside the vocabulary of {vocabulary}")));
        }
        self.buffer.clear();
        if self.header.id_bytes == 2 {
            self.buffer.extend(ids.iter().flat_map(|&id| (id as u16).to_le_bytes()));
        } else {
            self.buffer.extend(ids.iter().flat_map(|&id| (id as u32).to_le_bytes()));
        }
        self.hasher.update(&self.buffer);
        self.starts.push(self.header.tokens);
        self.header.tokens += ids.len() as u64;
        self.file.write_all(&self.buffer).map_err(Error::io("write", &self.partial))
    }

    /// Writes the documents' table and the header, forces everything to disk, puts the file in its place and opens it.
    ///
    /// # Errors
    /// No token at all, a full disk; what stood at the path before is then untouched.
    pub fn finish(mut self) -> Result<TokenFile> {
        if self.header.tokens == 0 {
            return Err(Error::Data(format!(
                "the text for `{}` gives no tokens: training and evaluation need text",
                self.path.display()
            )));
        }
        self.header.documents = self.starts.len() as u64;
        let table: Vec<u8> = self.starts.iter().flat_map(|s| s.to_le_bytes()).collect();
        self.hasher.update(&table);
        self.hasher.update(&self.header.to_bytes());
        self.header.content_hash = *self.hasher.finalize().as_bytes();
        self.complete(&table).map_err(Error::io("write", &self.partial))?;
        std::fs::rename(&self.partial, &self.path).map_err(Error::io("write", &self.path))?;
        self.finished = true;
        TokenFile::open(&self.path)
    }

    fn complete(&mut self, table: &[u8]) -> std::io::Result<()> {
        let ids = self.header.tokens * u64::from(self.header.id_bytes);
        let padding = (ids.next_multiple_of(8) - ids) as usize;
        self.file.write_all(&[0; 8][..padding])?;
        self.file.write_all(table)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&self.header.to_bytes())?;
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }
}

impl Drop for TokenFileWriter {
    fn drop(&mut self) {
        if !self.finished {
            // An unfinished file is of no use to anyone; that it cannot be removed either is no news.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// The ids of a text, read from a memory-mapped file.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    map: Mmap,
    header: Header,
    starts: Vec<u64>,
}

impl TokenFile {
    /// Encodes a text and writes it to `path`, replacing what is there.
    ///
    /// # Errors
    /// Text that the tokenizer cannot represent, a folder that cannot be written, a full disk.
    pub fn create(path: &Path, text: &Text, tokenizer: &Tokenizer) -> Result<Self> {
        let mut writer = TokenFileWriter::create(path, tokenizer.vocabulary(), tokenizer.identity())?;
        let mut waiting = Vec::new();
        let mut bytes = 0;
        for document in text.documents() {
            bytes += document.len();
            waiting.push(document);
            if bytes >= ENCODED_AT_ONCE {
                for ids in tokenizer.encode_documents(&waiting)? {
                    writer.push_document(&ids)?;
                }
                waiting.clear();
                bytes = 0;
            }
        }
        for ids in tokenizer.encode_documents(&waiting)? {
            writer.push_document(&ids)?;
        }
        writer.finish()
    }

    /// Opens a token file and checks that it is one, whole, and of this version. The ids themselves are checked
    /// when they are read ([`TokenFile::read`]), or all at once by [`TokenFile::verify`].
    ///
    /// # Errors
    /// A file that is missing, truncated, damaged, of another version, or something else.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        // SAFETY: the map is read-only and private to this value. Were another process to change or shorten the file,
        // reads could see other bytes (every id is range-checked) or end the process; this program replaces
        // token files only by renaming a new file over the old name, which leaves the mapped one as it is.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let wrong = |what: String| {
            Error::Data(format!(
                "`{}` cannot be used as a token file: {what}; make it again from the text",
                path.display()
            ))
        };
        let header = Header::parse(&map).map_err(wrong)?;
        let table = header.table().unwrap_or(0) as usize;
        let starts: Vec<u64> = map[table..].as_chunks::<8>().0.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect();
        let ordered = starts.first() == Some(&0)
            && starts.is_sorted_by(|a, b| a < b)
            && starts.last().is_some_and(|&last| last < header.tokens);
        if !ordered {
            return Err(wrong("its table of documents is damaged".into()));
        }
        Ok(TokenFile { path: path.into(), map, header, starts })
    }

    /// Opens a token file that must have been made with this tokenizer.
    ///
    /// # Errors
    /// Those of [`TokenFile::open`], and a file that another tokenizer made.
    pub fn open_for(path: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let file = TokenFile::open(path)?;
        if file.vocabulary() != tokenizer.vocabulary() {
            return Err(Error::Data(format!(
                "`{}` was made with a vocabulary of {}, and the tokenizer has {}: make it again with this tokenizer",
                path.display(),
                file.vocabulary(),
                tokenizer.vocabulary()
            )));
        }
        if file.header.tokenizer_hash != tokenizer.identity() {
            return Err(Error::Data(format!(
                "`{}` was made with another tokenizer of the same vocabulary size {}: make it again with this one",
                path.display(),
                file.vocabulary()
            )));
        }
        Ok(file)
    }

    /// How many tokens there are.
    pub fn token_count(&self) -> u64 {
        self.header.tokens
    }

    /// Size of the vocabulary; every id lies below it.
    pub fn vocabulary(&self) -> usize {
        self.header.vocabulary as usize
    }

    /// Index of each document's first token: strictly increasing, the first is 0.
    pub fn documents(&self) -> &[u64] {
        &self.starts
    }

    /// BLAKE3 over ids, documents and the other fields of the header, as hexadecimal digits: equal for equal data.
    pub fn content_hash(&self) -> String {
        blake3::Hash::from_bytes(self.header.content_hash).to_hex().to_string()
    }

    /// Appends the ids of `range` to `ids`.
    ///
    /// # Errors
    /// A range that reaches past the end, an id outside the vocabulary (a damaged file).
    pub fn read(&self, range: Range<u64>, ids: &mut Vec<i32>) -> Result<()> {
        if range.start > range.end || range.end > self.header.tokens {
            return Err(Error::Data(format!(
                "tokens {} to {} of `{}` were asked for, and it has {}",
                range.start,
                range.end,
                self.path.display(),
                self.header.tokens
            )));
        }
        let width = self.header.id_bytes as usize;
        let first = HEADER_BYTES + range.start as usize * width;
        let bytes = &self.map[first..HEADER_BYTES + range.end as usize * width];
        let before = ids.len();
        if width == 2 {
            let chunks = bytes.as_chunks::<2>().0;
            ids.extend(chunks.iter().map(|&id| i32::from(u16::from_le_bytes(id))));
        } else {
            let chunks = bytes.as_chunks::<4>().0;
            ids.extend(chunks.iter().map(|&id| u32::from_le_bytes(id) as i32));
        }
        let vocabulary = self.header.vocabulary as i32;
        match ids[before..].iter().find(|&&id| id < 0 || id >= vocabulary) {
            None => Ok(()),
            Some(id) => Err(Error::Data(format!(
                "`{}` holds the id {id}, outside its vocabulary of {vocabulary}: it is damaged; make it again from the text",
                self.path.display()
            ))),
        }
    }

    /// Reads the whole file and holds it against the hash in its header.
    ///
    /// # Errors
    /// A file that was changed after it was written.
    pub fn verify(&self) -> Result<()> {
        let ids = self.header.tokens as usize * self.header.id_bytes as usize;
        let table = self.header.table().unwrap_or(0) as usize;
        let unhashed = Header { content_hash: [0; 32], ..self.header };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.map[HEADER_BYTES..HEADER_BYTES + ids]);
        hasher.update(&self.map[table..]);
        hasher.update(&unhashed.to_bytes());
        if hasher.finalize() == blake3::Hash::from_bytes(self.header.content_hash) {
            return Ok(());
        }
        Err(Error::Data(format!(
            "the content of `{}` is not what was written: the file is damaged; make it again from the text",
            self.path.display()
        )))
    }
}
