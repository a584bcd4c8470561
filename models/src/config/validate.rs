//! What a configuration as a whole must satisfy, checked before any data is read. Every error names the value, the key
//! and what to write instead.

use super::sections::{DataConfig, Device, DeviceConfig, Dtype, TrainConfig};
use super::{Config, TokenizerChoice};
use crate::{Error, Result};

impl Config {
    /// Checks every value and how they go together. [`Config::resolve`] ends with it.
    ///
    /// # Errors
    /// The first value that cannot be meant.
    pub fn validate(&self) -> Result<()> {
        self.model.validate()?;
        check_data(&self.data)?;
        check_positive_counts(&self.train)?;
        check_budget(&self.train)?;
        check_patches(&self.train)?;
        check_optimizer(&self.train)?;
        if self.train.stochastic_rounding == Some(true) && self.device.dtype != Dtype::Bf16 {
            return fail(format!(
                "train.stochastic_rounding is for bf16, whose weights are rounded from master weights, and device.dtype is \
                 `{}`: set it to bf16, or leave stochastic_rounding out",
                self.device.dtype
            ));
        }
        self.device.check()?;
        check_step_size(&self.train)?;
        self.check_vocabulary()?;
        let (seq_len, room) = (self.train.seq_len, self.model.max_positions);
        if seq_len > room {
            return fail(format!(
                "train.seq_len = {seq_len} is longer than model.max_positions = {room}: shorten the sequence, or set \
                 model.max_positions to {seq_len}"
            ));
        }
        Ok(())
    }

    fn check_vocabulary(&self) -> Result<()> {
        let ids = match &self.data.tokenizer {
            TokenizerChoice::Bytes => 256,
            TokenizerChoice::Bpe(size) => *size,
            // Known only to whoever reads the file, and checked there.
            TokenizerChoice::File(_) => return Ok(()),
        };
        let size = self.model.vocab_size;
        if size < ids {
            return fail(format!(
                "model.vocab_size = {size} is too small for the tokenizer `{}` with its {ids} ids: leave vocab_size out, \
                 or choose a tokenizer with at most {size}",
                self.data.tokenizer
            ));
        }
        Ok(())
    }
}

impl DeviceConfig {
    /// Checks what can be checked without opening the device.
    ///
    /// # Errors
    /// 0 threads; a dtype that the device does not compute in; variants of CUDA kernels or a search on the CPU, or variants that there are not.
    pub fn check(&self) -> Result<()> {
        if self.threads == Some(0) {
            return fail("device.threads is 0: give at least 1, or leave it out for one per core".into());
        }
        if self.device != Device::Cpu && self.dtype == Dtype::F64 {
            return fail(format!(
                "device.dtype = \"f64\" is for the CPU; on {} use f32, or set device.device to cpu",
                self.device
            ));
        }
        if self.device == Device::Cpu && self.searches() {
            return fail(
                "device.gemm_search times algorithms for products on a card: set device.device to cuda, or leave it out".into(),
            );
        }
        match &self.kernel {
            Some(kernel) if self.device == Device::Cpu => fail(format!(
                "device.kernel = \"{kernel}\" chooses among CUDA kernels: set device.device to cuda, or leave it out"
            )),
            Some(kernel) => {
                patchgpt_cuda::check_kernel(kernel).map_err(|error| Error::Config(format!("device.kernel: {error}")))
            }
            None => Ok(()),
        }
    }
}

fn fail(message: String) -> Result<()> {
    Err(Error::Config(message))
}

fn check_data(data: &DataConfig) -> Result<()> {
    let share = data.validation_fraction;
    if !(share > 0.0 && share < 1.0) {
        return fail(format!(
            "data.validation_fraction = {share} must lie between 0 and 1, both excluded: 0.1 keeps the last tenth of the \
             text for validation"
        ));
    }
    Ok(())
}

fn check_positive_counts(train: &TrainConfig) -> Result<()> {
    let counts = [
        ("seq_len", train.seq_len as u64),
        ("batch_size", train.batch_size as u64),
        ("micro_batch", train.micro_batch.unwrap_or(1) as u64),
        ("evaluate_every", train.evaluate_every),
        ("evaluation_windows", train.evaluation_windows as u64),
        ("checkpoint_every", train.checkpoint_every),
    ];
    match counts.iter().find(|(_, count)| *count == 0) {
        Some((name, _)) => fail(format!("train.{name} is 0, but must be at least 1")),
        None => Ok(()),
    }
}

/// Refuses steps beyond any machine, whose counts would overflow.
fn check_step_size(train: &TrainConfig) -> Result<()> {
    let k = train.stage_patch_sizes().into_iter().max().unwrap_or(1);
    let tokens = train.seq_len as f64 * train.batch_size as f64 * k as f64;
    if tokens > 2f64.powi(40) {
        return fail(format!(
            "seq_len = {} times batch_size = {} times patch size {k} makes steps of {tokens:.1e} tokens, more than the \
             limit of 2^40: choose smaller values",
            train.seq_len, train.batch_size
        ));
    }
    Ok(())
}

fn check_budget(train: &TrainConfig) -> Result<()> {
    let TrainConfig { steps, tokens, flops, .. } = train;
    match (steps, tokens, flops) {
        (Some(0), None, None) | (None, Some(0), None) => {
            fail("the budget is 0: give at least one step or the tokens of one".into())
        }
        (None, None, Some(flops)) if !(flops.is_finite() && *flops > 0.0) => {
            fail(format!("train.flops = {flops} must be a positive number, for instance 2e13"))
        }
        (Some(_), None, None) | (None, Some(_), None) | (None, None, Some(_)) => Ok(()),
        _ => fail(format!(
            "exactly one of train.steps, train.tokens and train.flops must be given, not {}",
            [steps.is_some(), tokens.is_some(), flops.is_some()].iter().filter(|given| **given).count()
        )),
    }
}

fn check_patches(train: &TrainConfig) -> Result<()> {
    let (name, flag, share) = match (train.patch_fraction, train.step_fraction) {
        (Some(lambda), None) => {
            ("patch_fraction", "--patch-fraction, the share of training tokens read in patches", lambda)
        }
        (None, Some(r)) => ("step_fraction", "the share of steps made in patches", r),
        (Some(lambda), Some(r)) => {
            return fail(format!(
                "train.patch_fraction = {lambda} and train.step_fraction = {r} are two ways to say one thing: give one"
            ));
        }
        (None, None) => {
            return fail("one of train.patch_fraction and train.step_fraction must be given".into());
        }
    };
    if !(0.0..=1.0).contains(&share) {
        return fail(format!(
            "train.{name} = {share} ({flag}) lies outside 0 to 1: 0 trains on tokens only, 1 on patches only, 0.6667 is \
             the paper's choice"
        ));
    }
    check_stage_list(train)?;
    for k in train.stage_patch_sizes() {
        // With a share of 0 no patch is ever cut, so that only a size of 0 remains a mistake.
        let (seq_len, batch_size) = if share > 0.0 { (train.seq_len, train.batch_size) } else { (k, k) };
        train.patch_regime(k).validate(seq_len, batch_size)?;
    }
    Ok(())
}

fn check_stage_list(train: &TrainConfig) -> Result<()> {
    if train.patch_shares.is_some() && train.patch_sizes.is_none() {
        return fail("train.patch_shares divides the patch stages of train.patch_sizes: give that list too".into());
    }
    if train.patch_size.is_some() == train.patch_sizes.is_some() {
        return fail("exactly one of train.patch_size and train.patch_sizes must be given".into());
    }
    if let Some(sizes) = &train.patch_sizes {
        if sizes.is_empty() {
            return fail("train.patch_sizes is empty: list the patch sizes in order, such as [16, 8, 4, 2]".into());
        }
        if sizes.len() > 1 && sizes.contains(&1) {
            return fail(format!(
                "train.patch_sizes = {sizes:?} contains 1, which is the token stage: leave it out, the token stage \
                 follows by itself"
            ));
        }
    }
    if let Some(shares) = &train.patch_shares {
        let stages = train.stage_patch_sizes().len();
        if shares.len() != stages {
            return fail(format!(
                "train.patch_shares has {} entries for {stages} patch sizes: give one share for each size of \
                 train.patch_sizes",
                shares.len()
            ));
        }
        if let Some(share) = shares.iter().find(|share| !(share.is_finite() && **share > 0.0)) {
            return fail(format!("train.patch_shares contains {share}: every share must be a positive number"));
        }
    }
    Ok(())
}

fn check_optimizer(train: &TrainConfig) -> Result<()> {
    let positive = [("lr", train.lr), ("eps", train.eps)];
    if let Some((name, value)) = positive.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
        return fail(format!("train.{name} = {value} must be a positive number"));
    }
    let not_negative = [("min_lr", train.min_lr), ("weight_decay", train.weight_decay), ("clip", train.clip)];
    if let Some((name, value)) = not_negative.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
        return fail(format!("train.{name} = {value} must be 0 or a positive number"));
    }
    if train.min_lr > train.lr {
        return fail(format!(
            "train.min_lr = {} is above train.lr = {}: the rate decays from lr to min_lr",
            train.min_lr, train.lr
        ));
    }
    let betas = [("beta1", train.beta1), ("beta2", train.beta2)];
    if let Some((name, value)) = betas.iter().find(|(_, value)| !(0.0..1.0).contains(value)) {
        return fail(format!("train.{name} = {value} must be at least 0 and below 1"));
    }
    if !(0.0..=1.0).contains(&train.decay_fraction) {
        return fail(format!(
            "train.decay_fraction = {} lies outside 0 to 1: 0.2 decays over the last fifth of the steps",
            train.decay_fraction
        ));
    }
    Ok(())
}
