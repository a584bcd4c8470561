//! A window: the tokens of one row of a batch. With T positions, input patch Ki and target patch Ko, position i reads
//! tokens x[i*Ki .. (i+1)*Ki] and is scored against x[(i+1)*Ki + k], k < Ko. So a window reads T*Ki + Ko tokens, and the
//! next one starts T*Ki tokens later.

/// How a stage turns tokens into positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowShape {
    /// T, positions of one window.
    pub positions: usize,
    /// Ki, tokens whose embeddings are averaged into one position.
    pub input_patch: usize,
    /// Ko, tokens that a position predicts.
    pub target_patch: usize,
}

impl WindowShape {
    /// A shape at token level: Ki = Ko = 1.
    pub fn token_level(positions: usize) -> Self {
        WindowShape { positions, input_patch: 1, target_patch: 1 }
    }

    /// T*Ki, the tokens from one window to the next.
    pub fn advance(&self) -> usize {
        self.positions * self.input_patch
    }

    /// T*Ki + Ko, the tokens one window reads, inputs and targets together.
    pub fn reads(&self) -> usize {
        self.advance() + self.target_patch
    }
}

/// Which tokens make one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Index of the first token in the token file.
    pub start: u64,
    /// Tokens to read: [`WindowShape::reads`], or fewer where a document or the text ends; the rest is padding.
    pub len: usize,
    /// How often the training text had been read to its end before.
    pub epoch: u64,
}
