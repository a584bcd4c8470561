//! The memory of a training step before it is made: the step runs on [`Meta`], which computes nothing and counts what every tensor would
//! hold, on whatever device and at whatever size. What is counted is therefore what the code allocates, not a formula beside it.

use patchgpt_autograd::no_grad;
use patchgpt_cuda as cuda;
use patchgpt_tensor::{DType, MemoryModel, Meta, Tensor};
use serde::Serialize;

use crate::config::{Config, Device, Recompute};
use crate::data::{Batch, InvertedIndex};
use crate::gpt::{Gpt, TrainBatch};
use crate::optimizer::AdamW;
use crate::train::stages::{Stage, StageName};
use crate::train::{self, Stepper, stage_shape};
use crate::{Error, Result};

/// Share of a device's memory that is left to its driver, loaded kernels and gaps between blocks.
pub const HEADROOM: f64 = 0.05;

/// What a training step holds, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Sequences of a forward and backward pass.
    pub micro_batch: usize,
    /// What the backward pass computes again instead of keeping.
    pub recompute: Recompute,
    /// Weights; with bf16 the f32 masters and their bf16 copies.
    pub weights: usize,
    /// Gradients of the weights.
    pub gradients: usize,
    /// AdamW's two moments.
    pub moments: usize,
    /// Everything else at the peak: activations, their gradients, logits, what ops work with.
    pub activations: usize,
    /// Of these, the logits of a chunk of rows, which exist while the head and its loss are computed.
    pub logits: usize,
    /// Rows of that chunk.
    pub logit_rows: usize,
    /// All of it at the step's peak.
    pub peak: usize,
    /// What a search for the algorithms of products adds to the first step's peak: beside each product that is new, memory as large as its result, while it
    /// is timed. 0 where none is asked for, or where the recorded step needs more. With `gemm=lt_gelu` a product with GELU takes its result twice, which is not counted.
    pub search: usize,
    /// What an evaluation between steps holds beside that: where steps are recorded, their memory is the graph's.
    pub evaluation: usize,
}

impl Footprint {
    /// What the device must have.
    pub fn needed(&self) -> usize {
        self.peak + self.evaluation.max(self.search)
    }
}

/// How a device with `memory` bytes takes them; on a card they decide how many logits it holds.
pub fn memory_model(device: Device, memory: usize) -> MemoryModel {
    match device {
        Device::Cpu => MemoryModel::cpu(),
        Device::Cuda => cuda::memory_model(memory),
        Device::CudaEmulated => cuda::emulated_memory_model(),
    }
}

/// The memory of a step of one stage of `config`, as `config` has its passes, on a device with `memory` bytes.
///
/// # Errors
/// Settings that contradict each other.
pub fn footprint(config: &Config, name: StageName, memory: usize) -> Result<Footprint> {
    let model = memory_model(config.device.device, memory);
    let found = held(config, name, model)?;
    if !config.device.searches() {
        return Ok(found);
    }
    let searching = held(config, name, MemoryModel { searches: true, ..model })?;
    Ok(Footprint { search: searching.peak - found.peak, ..found })
}

/// The same on a device that takes memory as `model` says, a search at the peak, if there is one, being a part of the peak.
fn held(config: &Config, name: StageName, model: MemoryModel) -> Result<Footprint> {
    let stage = Stage::alone(config, name, 1)?;
    let meta = Meta::new(model);
    let gpt = train::initial_model(config, &meta.device())?;
    let mut optimizer = AdamW::new(gpt.parameters(), (&config.train).into())?;
    let batch = blank(&stage, stage.micro_batch, &gpt)?;
    // A second pass, where there is one, adds to the gradients of the first; those after it add their batches.
    let count = stage.sequences.div_ceil(stage.micro_batch);
    let _others = Tensor::zeros(&[count.saturating_sub(2) * batch.integers()], DType::I32, gpt.device())?;
    let passes = vec![batch; count.min(2)];
    let graphs = model.graphs && config.device.graphs();
    let mut stepper = Stepper::new(graphs);
    // Once as it is, and where steps are recorded once in the graph's own memory.
    for _ in 0..1 + usize::from(graphs) {
        stepper.step(&gpt, &mut optimizer, &passes, &stage.regime.weights(), config.train.lr, config.train.clip)?;
    }
    let [weights, gradients, moments] = train::held_by(&gpt, &optimizer).map(|(_, bytes)| bytes);
    let peak = meta.memory_peak();
    let evaluation = if graphs { evaluation(config, &gpt)? } else { 0 };
    let (dtype, vocabulary) = (train::dtype(&config.device), config.model.vocab_size);
    let logit = if model.widens_head { dtype.accumulator().size() } else { dtype.size() };
    let logit_rows = model.logits.rows_of(stage.micro_batch * stage.positions, vocabulary, logit);
    Ok(Footprint {
        micro_batch: stage.micro_batch,
        recompute: config.train.recompute,
        weights,
        gradients,
        moments,
        activations: peak.saturating_sub(weights + gradients + moments),
        logits: logit_rows * model.logits.columns_of(vocabulary, logit) * logit,
        logit_rows,
        peak,
        search: 0,
        evaluation,
    })
}

/// What an evaluation holds beside the model, as training has its batches.
fn evaluation(config: &Config, gpt: &Gpt) -> Result<usize> {
    let sequences = config.train.micro_batch.unwrap_or(config.train.batch_size);
    let batch = blank(&Stage::alone(config, StageName::Token, 1)?, sequences, gpt)?;
    let held = gpt.device().rehearse(|| {
        let batch = TrainBatch::new(&batch, &[1.0], gpt)?;
        no_grad(|| gpt.loss(&batch, &batch.mean_scale()?)).map(drop)
    })?;
    Ok(held.unwrap_or(0))
}

/// A batch of `sequences` sequences of the token 0.
fn blank(stage: &Stage, sequences: usize, gpt: &Gpt) -> Result<Batch> {
    let shape = stage_shape(stage).window;
    let inputs = vec![0; sequences * shape.advance()];
    let targets = vec![0; sequences * shape.positions * shape.target_patch];
    Ok(Batch {
        sequences,
        shape,
        index: InvertedIndex::new(&inputs, gpt.config().vocab_size)?,
        valid_targets: targets.len(),
        valid_weight: stage.regime.weights().iter().sum::<f64>() * (sequences * shape.positions) as f64,
        bag_entropy: 0.0,
        inputs,
        targets,
    })
}

/// The passes with the most sequences that fit into `memory` bytes less [`HEADROOM`], for each level of recomputation that has any.
///
/// # Errors
/// As [`footprint`].
pub fn choices(config: &Config, name: StageName, memory: usize) -> Result<Vec<Footprint>> {
    let room = (memory as f64 * (1.0 - HEADROOM)) as usize;
    let sequences = Stage::alone(config, name, 1)?.sequences;
    let mut found = Vec::new();
    for recompute in [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks] {
        let at = |micro_batch: usize| {
            let mut config = config.clone();
            (config.train.micro_batch, config.train.recompute) = (Some(micro_batch), recompute);
            footprint(&config, name, memory)
        };
        let mut best = at(1)?;
        if best.needed() > room {
            continue;
        }
        // `most` is one that does not fit, or one more than there are.
        let mut most = sequences + 1;
        while most - best.micro_batch > 1 {
            // Doubled while nothing is known to be too large: passes of a size that memory forbids are then hardly tried.
            let middle =
                if most > sequences { (2 * best.micro_batch).min(sequences) } else { (best.micro_batch + most) / 2 };
            let tried = at(middle)?;
            if tried.needed() <= room { best = tried } else { most = middle }
        }
        found.push(best);
    }
    Ok(found)
}

/// Fewest positions of a pass that keep a device busy: below, recomputation costs less than small products do.
const POSITIONS: usize = 4096;

/// The choice that takes the least time: the least recomputation whose passes are not too small.
pub fn proposal<'a>(choices: &'a [Footprint], stage: &Stage) -> Option<&'a Footprint> {
    let enough = POSITIONS.div_ceil(stage.positions).min(stage.sequences);
    let keeps_busy = |choice: &&Footprint| choice.micro_batch >= enough;
    choices.iter().find(keeps_busy).or(choices.iter().max_by_key(|choice| choice.micro_batch))
}

/// Bytes from text such as `80G`, `79.6GiB` or `24000M`: units of 1000 without an i, of 1024 with one.
///
/// # Errors
/// Text that is no amount of memory, or none of it.
pub fn parse_memory(text: &str) -> Result<usize> {
    let expected =
        || Error::Config(format!("an amount of memory such as 80G, 79.6GiB or 24000M is expected, got `{text}`"));
    let size: bytesize::ByteSize = text.parse().map_err(|_| expected())?;
    usize::try_from(size.as_u64()).ok().filter(|&bytes| bytes > 0).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: usize = 80 << 30;

    fn small(sets: &[&str]) -> Config {
        let mut config = Config::preset("bench-s").unwrap();
        (config.model.layers, config.model.vocab_size) = (2, 1000);
        (config.train.seq_len, config.train.batch_size) = (64, 8);
        for set in sets {
            match *set {
                "cheap" => config.train.recompute = Recompute::Cheap,
                "blocks" => config.train.recompute = Recompute::Blocks,
                "bf16" => config.device.dtype = crate::config::Dtype::Bf16,
                other => panic!("{other}"),
            }
        }
        config
    }

    #[test]
    fn parts_add_up_and_known_ones_are_what_they_must_be() {
        let config = small(&[]);
        let found = footprint(&config, StageName::Token, MEMORY).unwrap();
        // Parameters are padded, each to whole cache lines.
        let near = |bytes: usize, each: usize| {
            let exact = (each * config.model.parameters()) as f64;
            assert!((exact..1.01 * exact).contains(&(bytes as f64)), "{bytes} bytes, {each} for each parameter");
        };
        near(found.weights, 4);
        assert_eq!((found.gradients, found.moments), (found.weights, 2 * found.weights));
        assert_eq!(found.peak, found.weights + found.gradients + found.moments + found.activations);
        assert_eq!(found.logits, 8 * 64 * 1000 * 4);
        assert!(found.activations > found.logits);
        let half = footprint(&small(&["bf16"]), StageName::Token, MEMORY).unwrap();
        near(half.weights, 6);
        assert_eq!((half.gradients, half.moments), (found.gradients, found.moments));
        let [cheap, blocks] =
            ["cheap", "blocks"].map(|level| footprint(&small(&[level]), StageName::Token, MEMORY).unwrap());
        assert!(blocks.activations < cheap.activations && cheap.activations < found.activations);
    }

    #[test]
    fn recorded_steps_hold_their_memory_while_others_compute() {
        let mut config = small(&["bf16"]);
        config.train.micro_batch = Some(3);
        config.device.device = Device::Cuda;
        let recorded = footprint(&config, StageName::Token, MEMORY).unwrap();
        config.device.graph = Some(false);
        let eager = footprint(&config, StageName::Token, MEMORY).unwrap();
        // Places of allocations that come and go leave gaps.
        assert!((eager.peak..eager.peak + eager.activations / 10).contains(&recorded.peak), "{recorded:?}, {eager:?}");
        assert_eq!((eager.evaluation, eager.needed()), (0, eager.peak));
        assert!(recorded.evaluation > recorded.logits && recorded.evaluation < recorded.activations, "{recorded:?}");
        assert_eq!(recorded.needed(), recorded.peak + recorded.evaluation);
        config.device.device = Device::Cpu;
        assert_eq!(footprint(&config, StageName::Token, MEMORY).unwrap().evaluation, 0, "the CPU records nothing");
    }

    #[test]
    fn a_search_has_memory_of_its_own_while_it_lasts() {
        let mut config = small(&["bf16"]);
        config.device.device = Device::Cuda;
        config.device.graph = Some(false);
        let without = footprint(&config, StageName::Token, MEMORY).unwrap();
        assert_eq!((without.search, without.needed()), (0, without.peak));
        config.device.gemm_search = Some(true);
        let found = footprint(&config, StageName::Token, MEMORY).unwrap();
        assert_eq!(Footprint { search: 0, ..found }, without);
        // The head stands at the peak, and the weight's gradient, in f32, is larger than its logits.
        let (logits, gradient) = (8 * 64 * 1000 * 2, 1000 * config.model.hidden * 4);
        assert!((logits..=gradient).contains(&found.search), "{found:?}");
        assert_eq!(found.needed(), found.peak + found.search);
    }

    #[test]
    fn the_largest_passes_that_fit_are_found() {
        let config = small(&[]);
        let with = |micro_batch: usize, recompute: Recompute| {
            let mut config = config.clone();
            (config.train.micro_batch, config.train.recompute) = (Some(micro_batch), recompute);
            footprint(&config, StageName::Patch, MEMORY).unwrap()
        };
        for wanted in [1, 3, 5, 8] {
            let memory = (with(wanted, Recompute::Nothing).peak as f64 / (1.0 - HEADROOM)).ceil() as usize;
            let found = choices(&config, StageName::Patch, memory).unwrap();
            let levels: Vec<Recompute> = found.iter().map(|choice| choice.recompute).collect();
            assert_eq!(levels, [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks]);
            assert_eq!(found[0], with(wanted, Recompute::Nothing));
            for choice in &found[1..] {
                assert!(choice.micro_batch >= wanted);
                assert_eq!(*choice, with(choice.micro_batch, choice.recompute));
            }
        }
        assert!(choices(&config, StageName::Patch, 1000).unwrap().is_empty());
    }

    #[test]
    fn recomputation_is_proposed_where_passes_would_be_small() {
        let stage = Stage::alone(&small(&[]), StageName::Token, 1).unwrap();
        let all = footprint(&small(&[]), StageName::Token, MEMORY).unwrap();
        let choice = |micro_batch, recompute| Footprint { micro_batch, recompute, ..all };
        let three = |sizes: [usize; 3]| {
            let levels = [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks];
            [0, 1, 2].map(|i| choice(sizes[i], levels[i]))
        };
        for (sizes, wanted) in [([8, 8, 8], 0), ([4, 8, 8], 1), ([2, 4, 8], 2), ([2, 3, 6], 2)] {
            let choices = three(sizes);
            assert_eq!(proposal(&choices, &stage), Some(&choices[wanted]), "{sizes:?}");
        }
        assert_eq!(proposal(&three([2, 4, 8])[1..2], &stage), Some(&choice(4, Recompute::Cheap)));
        assert_eq!(proposal(&[], &stage), None);
    }

    #[test]
    fn amounts_of_memory() {
        assert_eq!(parse_memory("80G").unwrap(), 80_000_000_000);
        assert_eq!(parse_memory("1.5GiB").unwrap(), 3 << 29);
        assert_eq!(parse_memory("24000 MB").unwrap(), 24_000_000_000);
        for wrong in ["", "much", "-3G", "0", "3 apples"] {
            let message = parse_memory(wrong).unwrap_err().to_string();
            assert!(message.contains("79.6GiB") && message.contains(wrong), "{message}");
        }
    }
}
