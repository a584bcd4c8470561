//! Which tokens make window w of stage s. The tokens are cut into chunks of U, the least common multiple of what a window
//! of each stage advances by (T*Ki). An epoch is a seeded permutation of the chunks; each stage in turn claims the next
//! chunks, so stages read disjoint tokens until an epoch ends, and visits the windows it claimed of an epoch in a
//! seeded permuted order, so that neighbours do not meet in a batch. A window is a function of (stage, index) alone:
//! to resume, counters are enough.

use super::permutation::permutation;
use super::window::{Window, WindowShape};
use crate::error::{Error, Result};

/// Purposes of the permutations, part of their keys.
const CHUNK_ORDER: u64 = 1;
const WINDOW_ORDER: u64 = 2;

/// What one stage reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageShape {
    /// How tokens become positions.
    pub window: WindowShape,
    /// Sequences of one optimizer step; the training text must hold at least that many windows.
    pub batch: usize,
    /// Windows of the whole stage: steps times sequences.
    pub windows: u64,
}

/// A stretch of tokens whose windows are read by one stage in one epoch.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    start: u64,
    end: u64,
    /// Targets may reach past the chunk's end, up to here.
    limit: u64,
}

#[derive(Clone, Debug)]
enum Chunks {
    /// `count` chunks of `size` tokens from token 0 on, with `margin` tokens after the last one.
    Across { count: u32, size: u64, margin: u64 },
    /// Chunks that end with their document.
    Within(Vec<Chunk>),
}

impl Chunks {
    fn count(&self) -> u32 {
        match self {
            Chunks::Across { count, .. } => *count,
            Chunks::Within(chunks) => chunks.len() as u32,
        }
    }

    fn get(&self, index: u32) -> Chunk {
        match self {
            Chunks::Across { size, margin, .. } => {
                let start = u64::from(index) * size;
                Chunk { start, end: start + size, limit: start + size + margin }
            }
            Chunks::Within(chunks) => chunks[index as usize],
        }
    }

    /// Windows of this shape that begin in the chunk and score at least one target.
    fn windows(&self, index: u32, shape: WindowShape) -> u64 {
        let chunk = self.get(index);
        let scoring_end = chunk.limit.saturating_sub(shape.input_patch as u64);
        let end = chunk.end.min(scoring_end);
        (end.saturating_sub(chunk.start)).div_ceil(shape.advance() as u64)
    }

    fn windows_per_epoch(&self, shape: WindowShape) -> u64 {
        match self {
            Chunks::Across { count, .. } if *count > 0 => u64::from(*count) * self.windows(0, shape),
            _ => (0..self.count()).map(|i| self.windows(i, shape)).sum(),
        }
    }
}

/// The chunks that a stage claims of one epoch: `chunks` of them from place `first_chunk` of the epoch's order on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    stage: usize,
    epoch: u64,
    first_chunk: u32,
    chunks: u32,
    /// Index in the stage of the part's first window.
    first_window: u64,
}

/// A part with everything needed to find its windows.
#[derive(Clone, Debug)]
struct OpenPart {
    part: Part,
    chunks: Vec<u32>,
    /// Windows in the chunks before each chunk.
    before: Vec<u64>,
    order: Vec<u32>,
}

/// The order in which the stages of a run read the training tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    chunks: Chunks,
    stages: Vec<StageShape>,
    seed: u64,
    parts: Vec<Part>,
    open: Option<OpenPart>,
}

impl Sampler {
    /// Plans all stages over `token_count` tokens. With `documents` (the index of each document's first token) no window
    /// spans two documents and the last window of a document may be partial; without, windows run across.
    ///
    /// # Errors
    /// Text too short for one batch of some stage, a shape with a zero in it.
    pub fn new(token_count: u64, documents: Option<&[u64]>, stages: &[StageShape], seed: u64) -> Result<Self> {
        let mut size = 1u64;
        for stage in stages {
            let WindowShape { positions, input_patch, target_patch } = stage.window;
            if [positions, input_patch, target_patch, stage.batch].contains(&0) {
                return Err(Error::Config(format!(
                    "{positions} positions, patches of {input_patch} and {target_patch} tokens and a batch of {} \
                     sequences make no windows: each must be at least 1",
                    stage.batch
                )));
            }
            size = least_common_multiple(size, stage.window.advance() as u64).ok_or_else(|| {
                Error::Config(
                    "the stages' windows have no common multiple below 2^64: choose patch sizes that divide each other"
                        .into(),
                )
            })?;
        }
        let chunks = match documents {
            None => across(token_count, size, stages)?,
            Some(starts) => Chunks::Within(within(token_count, size, starts)),
        };
        let mut sampler = Sampler { chunks, stages: stages.to_vec(), seed, parts: Vec::new(), open: None };
        sampler.check_size(token_count, size, documents.is_some())?;
        sampler.plan();
        Ok(sampler)
    }

    /// Window `index` of stage `stage`. Cheap for indices in order: the permutations of the current epoch are kept.
    ///
    /// # Errors
    /// A stage or an index that was not planned.
    pub fn window(&mut self, stage: usize, index: u64) -> Result<Window> {
        let planned = self.stages.get(stage).map_or(0, |stage| stage.windows);
        if index >= planned {
            return Err(Error::Config(format!(
                "window {index} of stage {stage} was asked for, and the stage was planned with {planned} windows"
            )));
        }
        let after = self.parts.partition_point(|part| (part.stage, part.first_window) <= (stage, index));
        let part = self.parts[after - 1];
        let open = match self.open.take() {
            Some(open) if open.part == part => open,
            _ => self.open_part(part)?,
        };
        let shape = self.stages[stage].window;
        let place = u64::from(open.order[(index - part.first_window) as usize]);
        let chunk = open.before.partition_point(|&before| before <= place) - 1;
        let within = place - open.before[chunk];
        let chunk = self.chunks.get(open.chunks[chunk]);
        let start = chunk.start + within * shape.advance() as u64;
        self.open = Some(open);
        Ok(Window { start, len: (chunk.limit - start).min(shape.reads() as u64) as usize, epoch: part.epoch })
    }

    /// Windows of a stage's shape that one epoch of the training text holds.
    pub fn windows_per_epoch(&self, stage: usize) -> u64 {
        self.stages.get(stage).map_or(0, |stage| self.chunks.windows_per_epoch(stage.window))
    }

    fn check_size(&self, token_count: u64, size: u64, apart: bool) -> Result<()> {
        for (number, stage) in self.stages.iter().enumerate() {
            let windows = self.chunks.windows_per_epoch(stage.window);
            if windows < stage.batch as u64 {
                let documents = if apart { " within single documents" } else { "" };
                return Err(Error::Data(format!(
                    "the training text has {token_count} tokens, too few for one batch: stage {} reads {} sequences of \
                     {} tokens a step, and the text, read in chunks of {size} tokens, holds {windows} such \
                     sequences{documents}; use a smaller --seq-len, --batch-size or --patch-size, or more text",
                    number + 1,
                    stage.batch,
                    stage.window.reads(),
                )));
            }
            if windows > u64::from(u32::MAX) {
                return Err(Error::Data(format!(
                    "the training text has {token_count} tokens, {windows} sequences an epoch: at most {} can be \
                     shuffled; use a larger --seq-len",
                    u32::MAX
                )));
            }
        }
        Ok(())
    }

    /// Lets each stage claim chunks, in order, until it has its windows.
    fn plan(&mut self) {
        let count = self.chunks.count();
        let (mut epoch, mut place) = (0, 0);
        let mut order: Option<Vec<u32>> = None;
        for stage in 0..self.stages.len() {
            let StageShape { window, windows, .. } = self.stages[stage];
            let per_epoch = self.chunks.windows_per_epoch(window);
            let mut claimed = 0;
            while claimed < windows {
                if place == count {
                    (epoch, place, order) = (epoch + 1, 0, None);
                }
                let part = Part { stage, epoch, first_chunk: place, chunks: 0, first_window: claimed };
                if place == 0 && per_epoch <= windows - claimed {
                    claimed += per_epoch;
                    place = count;
                } else {
                    let order = order.get_or_insert_with(|| self.chunk_order(epoch));
                    while place < count && claimed < windows {
                        claimed += self.chunks.windows(order[place as usize], window);
                        place += 1;
                    }
                }
                // What is left of an epoch may hold no window of this stage (documents shorter than its patch).
                if claimed > part.first_window {
                    self.parts.push(Part { chunks: place - part.first_chunk, ..part });
                }
            }
        }
    }

    fn chunk_order(&self, epoch: u64) -> Vec<u32> {
        permutation(self.chunks.count(), &[self.seed, CHUNK_ORDER, epoch])
    }

    fn open_part(&self, part: Part) -> Result<OpenPart> {
        let first = part.first_chunk as usize;
        let mut chunks = self.chunk_order(part.epoch);
        chunks.truncate(first + part.chunks as usize);
        chunks.drain(..first);
        let shape = self.stages[part.stage].window;
        let mut total = 0;
        let before = chunks.iter().map(|&chunk| {
            let before = total;
            total += self.chunks.windows(chunk, shape);
            before
        });
        let before = before.collect();
        let length = u32::try_from(total).map_err(|_| {
            Error::Data(format!("{total} sequences of one epoch cannot be shuffled: at most {} can", u32::MAX))
        })?;
        let key = [self.seed, WINDOW_ORDER, part.stage as u64, part.epoch];
        Ok(OpenPart { part, chunks, before, order: permutation(length, &key) })
    }
}

/// Whole chunks from the first token on; after the last one there is room for the targets of any stage.
fn across(token_count: u64, size: u64, stages: &[StageShape]) -> Result<Chunks> {
    let targets = stages.iter().map(|stage| stage.window.target_patch as u64);
    let margin = targets.max().unwrap_or(0);
    let count = token_count.saturating_sub(margin) / size;
    let count = u32::try_from(count).map_err(|_| {
        Error::Data(format!(
            "the training text has {token_count} tokens, {count} chunks of {size}: at most {} can be shuffled; use a \
             larger --seq-len",
            u32::MAX
        ))
    })?;
    Ok(Chunks::Across { count, size, margin })
}

/// Chunks of `size` tokens within each document, its last one shorter.
fn within(token_count: u64, size: u64, starts: &[u64]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for (index, &first) in starts.iter().enumerate() {
        let limit = starts.get(index + 1).copied().unwrap_or(token_count);
        let mut start = first;
        while start < limit {
            let end = (start + size).min(limit);
            chunks.push(Chunk { start, end, limit });
            start = end;
        }
    }
    chunks
}

fn least_common_multiple(a: u64, b: u64) -> Option<u64> {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x).checked_mul(b)
}
