//! From text to batches: text -> tokenizer -> memory-mapped token file -> sampler (which tokens make which window)
//! -> [`Batch`] (inputs `[B, T, Ki]`, targets `[B, T, Ko]`, inverted index of the ids).
//! The last part of the text is validation text: it is cut off before the tokenizer is trained and never trained on.

mod batch;
mod evaluation;
mod loader;
mod permutation;
mod sampler;
mod text;
mod token_file;
mod tokenizer;
mod window;

#[cfg(test)]
mod batch_tests;
#[cfg(test)]
mod sampler_tests;
#[cfg(test)]
mod token_file_tests;
#[cfg(test)]
mod tokenizer_tests;

use std::path::Path;
use std::sync::Arc;

pub use batch::{Batch, InvertedIndex, StageBatches};
pub use evaluation::EvaluationSet;
pub use loader::Loader;
pub use permutation::{SplitMix64, permutation};
pub use sampler::{Sampler, StageShape};
pub use text::Text;
pub use token_file::{TokenFile, TokenFileWriter};
pub use tokenizer::Tokenizer;
pub use window::{Window, WindowShape};

use crate::config::TokenizerChoice;
use crate::error::{Error, Result};

/// Share of the text, at its end, that is kept for validation unless asked otherwise.
pub const VALIDATION_FRACTION: f64 = 0.1;

const TRAINING_FILE: &str = "train.tokens";
const VALIDATION_FILE: &str = "validation.tokens";

/// A tokenizer and the two token files made with it.
#[derive(Debug)]
pub struct Dataset {
    /// What turned the text into ids.
    pub tokenizer: Tokenizer,
    /// The training tokens.
    pub training: Arc<TokenFile>,
    /// The validation tokens: the end of the text.
    pub validation: Arc<TokenFile>,
}

impl Dataset {
    /// Splits `text`, makes the tokenizer (from the training part alone) and writes `train.tokens` and
    /// `validation.tokens` into `folder`, which is created; files of that name are replaced.
    ///
    /// # Errors
    /// Those of [`Text::split`], [`Tokenizer::new`] and [`TokenFile::create`].
    pub fn prepare(text: Text, validation_fraction: f64, tokenizer: &TokenizerChoice, folder: &Path) -> Result<Self> {
        let (training, validation) = text.split(validation_fraction)?;
        let tokenizer = Tokenizer::new(tokenizer, &training)?;
        std::fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))?;
        let training = TokenFile::create(&folder.join(TRAINING_FILE), &training, &tokenizer)?;
        let validation = TokenFile::create(&folder.join(VALIDATION_FILE), &validation, &tokenizer)?;
        Ok(Dataset { tokenizer, training: Arc::new(training), validation: Arc::new(validation) })
    }

    /// Opens the token files that [`Dataset::prepare`] wrote into `folder` with the same tokenizer.
    ///
    /// # Errors
    /// A file that is missing, damaged, or was made with another tokenizer.
    pub fn open(folder: &Path, tokenizer: Tokenizer) -> Result<Self> {
        let training = TokenFile::open_for(&folder.join(TRAINING_FILE), &tokenizer)?;
        let validation = TokenFile::open_for(&folder.join(VALIDATION_FILE), &tokenizer)?;
        Ok(Dataset { tokenizer, training: Arc::new(training), validation: Arc::new(validation) })
    }
}
