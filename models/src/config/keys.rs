//! The table of keys: name in a file and behind `--set`, and what it is in one phrase. Unknown keys are refused by it,
//! `config.toml` takes its order and its comments from it, `--help` can list it, and `--resume` compares by it.

/// One key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `section.key`.
    pub name: &'static str,
    /// What it is, in one phrase.
    pub about: &'static str,
    /// Whether its value is text, so that `--set` takes what is given as it stands.
    pub text: bool,
    /// Whether a continued run may have another value: it changes no result.
    pub free_on_resume: bool,
}

const fn key(name: &'static str, about: &'static str) -> Key {
    Key { name, about, text: false, free_on_resume: false }
}

const fn text(name: &'static str, about: &'static str) -> Key {
    Key { text: true, ..key(name, about) }
}

const fn free(name: &'static str, about: &'static str) -> Key {
    Key { free_on_resume: true, ..key(name, about) }
}

/// Every key, in the order of the file.
pub const KEYS: &[Key] = &[
    text("model.preset", "the preset that the values below started from"),
    text("model.dialect", "llama or gpt2"),
    key("model.layers", "transformer blocks"),
    key("model.hidden", "width of the model"),
    key("model.ffn", "width of the feed-forward layer"),
    key("model.heads", "attention heads"),
    key("model.kv_heads", "heads of keys and values; fewer than heads is grouped-query attention"),
    key("model.vocab_size", "size of the vocabulary; from the tokenizer unless given"),
    key("model.max_positions", "longest sequence, in positions"),
    key("model.rope_theta", "base of the RoPE frequencies"),
    key("model.norm_eps", "epsilon of the norms"),
    key("model.tied_head", "whether the head shares the input embedding"),
    key("model.init_std", "standard deviation of the initial weights"),
    text("data.path", "a text file or a folder of them; absent: the plays that ship with the program"),
    text("data.tokenizer", "bytes, bpe:N, or the path of a tokenizer.json"),
    key("data.validation_fraction", "share of the text, at its end, that is never trained on"),
    text("data.documents", "cross or respect: whether a window runs over the end of a document"),
    key("train.seq_len", "positions per sequence (T), in both stages"),
    key("train.batch_size", "sequences per step (B)"),
    key("train.micro_batch", "sequences per forward and backward pass; absent: the whole batch"),
    key("train.steps", "budget: steps of both stages together"),
    key("train.tokens", "budget: tokens read"),
    key("train.flops", "budget: model FLOPs"),
    key("train.patch_fraction", "lambda: share of the training tokens read in patches"),
    key("train.step_fraction", "r: share of the steps made in patches, instead of lambda"),
    key("train.patch_size", "tokens per patch (K)"),
    key("train.patch_sizes", "K of several patch stages in order, such as [16, 8, 4, 2], instead of patch_size"),
    key("train.patch_shares", "how the patch share is divided among patch_sizes; absent: equally"),
    text("train.bag", "both, input or target: which side of the model sees patches"),
    text("train.target_weights", "uniform or 1/k: weight of the k-th token of a target patch"),
    text("train.patch_context", "positions (a patch sequence has T positions) or tokens (T tokens)"),
    text("train.patch_batch", "positions (a patch step has B sequences) or tokens (B/K)"),
    text("train.optimizer_at_switch", "reset or carry: the optimizer's state at the switch"),
    text("train.schedule", "rewarm, continuous or wsd: the learning rate across the switch"),
    key("train.lr", "peak learning rate"),
    key("train.min_lr", "learning rate at the end of the decay"),
    key("train.warmup", "warm-up: a whole number of steps, or a decimal fraction of the steps"),
    key("train.decay_fraction", "share of all steps that the decay of wsd takes"),
    key("train.beta1", "AdamW: decay of the first moment"),
    key("train.beta2", "AdamW: decay of the second moment"),
    key("train.eps", "AdamW: epsilon"),
    key("train.weight_decay", "AdamW: weight decay of matrices and embeddings"),
    key(
        "train.stochastic_rounding",
        "true: weights of a bf16 model are rounded stochastically from the f32 master weights; absent: to nearest",
    ),
    key("train.clip", "largest global norm of the gradient; 0: no clipping"),
    key(
        "train.recompute",
        "what the backward pass computes again: nothing, cheap (norms, activation functions), blocks; less memory, more time",
    ),
    key("train.seed", "seed of weights, data order and sample"),
    key("train.evaluate_every", "steps between evaluations"),
    key("train.evaluation_windows", "windows of validation text per evaluation, always the same"),
    free("train.checkpoint_every", "steps between checkpoints"),
    text("train.init", "a Hugging Face folder or a run to start the weights from"),
    text("device.device", "cpu, cuda, or cuda:emulated (the CUDA kernels on the CPU, to find mistakes)"),
    text("device.dtype", "f32, bf16 or f64"),
    free("device.threads", "threads; absent: one per core. Results do not depend on it"),
    free(
        "device.graph",
        "false: a training step on a card is not recorded as a CUDA graph and replayed, to find mistakes; results do not depend on it",
    ),
    text("device.kernel", "variants of CUDA kernels, such as attention=sm80; absent: the best that the device has"),
    key(
        "device.gemm_search",
        "true: each product on a card is computed by the fastest of the algorithms that cuBLASLt offers, found by timing them; the choices are kept in gemm.json, since they decide the last bits",
    ),
];

/// Keys of which a configuration has at most one; a later layer that sets one takes the place of the others.
pub(super) const EXCLUSIVE: &[&[&str]] = &[
    &["train.steps", "train.tokens", "train.flops"],
    &["train.patch_fraction", "train.step_fraction"],
    &["train.patch_size", "train.patch_sizes"],
    &["train.patch_size", "train.patch_shares"],
];

/// The key of this full name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The candidate most like `word`, if any is like it at all.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::normalized_damerau_levenshtein(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The error text for a key that does not exist, with the nearest one that does.
pub(super) fn unknown(source: &str, name: &str) -> String {
    match nearest_key(name) {
        Some(near) => format!("{source}: there is no key `{name}`; the nearest is `{near}`"),
        None => format!(
            "{source}: there is no key `{name}`; keys are section.key with the sections model, data, \
             train, device"
        ),
    }
}

/// The key of the same name in another section, else the one whose last part is most similar.
fn nearest_key(name: &str) -> Option<&'static str> {
    let last = |name: &'static str| name.split_once('.').map_or(name, |(_, last)| last);
    let wanted = name.rsplit_once('.').map_or(name, |(_, last)| last);
    let names = || KEYS.iter().map(|key| key.name);
    let of_last = |near: &str| names().find(|known| last(known) == near);
    of_last(wanted).or_else(|| of_last(nearest(wanted, names().map(last))?))
}
