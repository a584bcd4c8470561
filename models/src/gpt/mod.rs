//! One GPT with two dialects. (Patch) embedding -> blocks -> final norm -> head, decoder-only and pre-norm:
//! x = x + attention(norm(x)), x = x + ffn(norm(x)). LLaMA (Touvron et al., arXiv 2302.13971): RMSNorm, RoPE, SwiGLU, grouped
//! key-value heads, no biases. GPT-2 (Radford et al., 2019): LayerNorm, learned positions, GELU, biases.
//! A position reads the mean of K token embeddings (arXiv 2407.12665); K = 1 is the plain model, on the same path.

mod attention;
mod batch;
mod cache;
mod gpt2;
mod llama;
mod stream;

use std::sync::Arc;

use patchgpt_autograd::{Result as GraphResult, Var, no_grad, recompute, recompute_cheap};
use patchgpt_tensor::{DType, Device, Tensor};

use attention::Attention;
pub(crate) use batch::mean_factor;
pub use batch::{Inputs, TrainBatch, mean_scale};
pub use cache::KvCache;
use stream::{Norm, Stream};

use crate::config::{Dialect, ModelConfig, Recompute};
use crate::parameters::{Init, ParameterSpec, Parameters};
use crate::{Error, Result};

/// The vocabulary's tables have memory for a multiple of so many rows.
pub const VOCABULARY_MULTIPLE: usize = 64;

/// A transformer block of either dialect.
trait Block: Send + Sync {
    /// The stream [B, T, C] after the block; `attend` maps the joined projections [B, T, (H+2G)*D] to [B, T, H*D].
    fn forward(&self, stream: Stream, attend: &dyn Fn(&Var) -> GraphResult<Var>) -> GraphResult<Stream>;
}

/// A GPT: configuration, parameters, and how to compute with them.
pub struct Gpt {
    config: ModelConfig,
    parameters: Parameters,
    attention: Attention,
    embedding: Var,
    /// Learned positions [P, C]; `None` where attention rotates.
    positions: Option<Var>,
    blocks: Vec<Arc<dyn Block>>,
    /// After the last block.
    final_norm: Norm,
    head: Var,
    recompute: Recompute,
}

impl Gpt {
    /// A model with initial values drawn from `seed`: matrices and embeddings normal with `config.init_std` (in GPT-2
    /// the projections into the residual stream divided by sqrt(2 * layers)), norm weights 1, biases 0.
    ///
    /// # Errors
    /// A contradictory configuration, a dtype other than f32, f64 and bf16, too little memory.
    pub fn new(config: &ModelConfig, dtype: DType, device: &Device, seed: u64) -> Result<Gpt> {
        config.validate()?;
        Gpt::over(config, Parameters::build(specs(config), dtype, device, seed)?)
    }

    /// A model whose parameters are all zero, to be loaded.
    ///
    /// # Errors
    /// As [`Gpt::new`].
    pub fn zeros(config: &ModelConfig, dtype: DType, device: &Device) -> Result<Gpt> {
        config.validate()?;
        Gpt::over(config, Parameters::zeros(specs(config), dtype, device)?)
    }

    fn over(config: &ModelConfig, parameters: Parameters) -> Result<Gpt> {
        let var = |name: &str| parameters.var(name).cloned();
        let (layers, eps) = (0..config.layers, config.norm_eps);
        let (blocks, embedding, positions, final_norm): (Result<Vec<Arc<dyn Block>>>, _, _, _) = match config.dialect {
            Dialect::Llama => (
                layers.map(|l| Ok(Arc::new(llama::LlamaBlock::new(config, &parameters, l)?) as _)).collect(),
                var(llama::EMBEDDING)?,
                None,
                Norm::Rms { weight: var("model.norm.weight")?, eps },
            ),
            Dialect::Gpt2 => (
                layers.map(|l| Ok(Arc::new(gpt2::Gpt2Block::new(config, &parameters, l)?) as _)).collect(),
                var(gpt2::EMBEDDING)?,
                Some(var(gpt2::POSITIONS)?),
                Norm::Layer { weight: var("transformer.ln_f.weight")?, bias: var("transformer.ln_f.bias")?, eps },
            ),
        };
        let blocks = blocks?;
        let head = if config.tied_head { embedding.clone() } else { var(HEAD)? };
        let attention = Attention::new(config, parameters.dtype(), parameters.device())?;
        let config = config.clone();
        Ok(Gpt {
            config,
            parameters,
            attention,
            embedding,
            positions,
            blocks,
            final_norm,
            head,
            recompute: Recompute::Nothing,
        })
    }

    /// The same model, whose backward pass computes so much again instead of keeping it (the default is nothing): less memory, more time, the
    /// same results to the bit.
    pub fn with_recompute(self, recompute: Recompute) -> Gpt {
        Gpt { recompute, ..self }
    }

    /// Shape and constants of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parameters and their gradients.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The head's weight [V, C]: the embedding where the head is tied.
    pub fn head(&self) -> &Var {
        &self.head
    }

    /// f32, f64 or bf16: the type of weights and activations. Losses, and the gradients of a bf16 model's weights, are f32.
    pub fn dtype(&self) -> DType {
        self.parameters.dtype()
    }

    /// Where the model lives.
    pub fn device(&self) -> &Device {
        self.parameters.device()
    }

    /// Output of the final norm, [B, T, C]: what the head reads.
    ///
    /// # Errors
    /// More positions than the model has, ids outside the vocabulary.
    pub fn hidden(&self, inputs: &Inputs) -> Result<Var> {
        let positions = inputs.ids().dim(1);
        self.check_positions(positions)?;
        let x = self.embedding.patch_embedding(inputs.ids(), inputs.index())?;
        self.trunk(&x, 0, |_, joined| self.attention.train(joined, positions))
    }

    /// `scale` times the sum over rows and targets of `w_k * -log softmax(logits)[target]`, 0-d; with `scale` (0-d) one over the
    /// sum of the weights of the valid targets of the whole step, all micro-batches together, the step's mean.
    ///
    /// # Errors
    /// More positions than the model has, ids outside the vocabulary, a batch of another dtype.
    pub fn loss(&self, batch: &TrainBatch, scale: &Tensor) -> Result<Var> {
        self.loss_of(batch.inputs(), batch.targets(), batch.target_weights(), scale)
    }

    /// [`Gpt::loss`] of the parts of a batch.
    pub(crate) fn loss_of(&self, inputs: &Inputs, targets: &Tensor, weights: &Tensor, scale: &Tensor) -> Result<Var> {
        let x = self.hidden(inputs)?;
        Ok(x.linear_cross_entropy(&self.head, targets, weights, scale)?)
    }

    /// Logits [B, T, V] of ids i32 [B, T, K], without a graph.
    ///
    /// # Errors
    /// Another shape, more positions than the model has, ids outside the vocabulary.
    pub fn logits(&self, ids: &Tensor) -> Result<Tensor> {
        let &[_, positions, _] = ids.shape() else {
            return Err(Error::Data(format!(
                "ids of the shape [B, T, K] expected (K = 1 at token level), got {:?}",
                ids.shape()
            )));
        };
        self.check_positions(positions)?;
        no_grad(|| {
            let x = Var::constant(self.embedding.tensor().patch_embedding(ids)?);
            let x = self.trunk(&x, 0, |_, joined| self.attention.train(joined, positions))?;
            Ok(x.linear(&self.head, None)?.tensor().clone())
        })
    }

    /// An empty cache for up to `capacity` positions of one sequence (no more than the model has).
    ///
    /// # Errors
    /// Too little memory.
    pub fn cache(&self, capacity: usize) -> Result<KvCache> {
        let capacity = capacity.min(self.config.max_positions);
        KvCache::new(&self.config, capacity, self.dtype(), self.device())
    }

    /// Appends tokens to the sequence in `cache`, without a graph; the logits [V] of the last one.
    ///
    /// # Errors
    /// No ids, ids outside the vocabulary, more tokens than the cache has room for.
    pub fn decode(&self, ids: &[i32], cache: &mut KvCache) -> Result<Tensor> {
        let (start, new) = (cache.len(), ids.len());
        if new == 0 || new > cache.capacity() - start {
            return Err(Error::Data(format!(
                "between 1 and {} tokens fit into the cache of {} positions, {start} of which are taken; got {new}",
                cache.capacity() - start,
                cache.capacity()
            )));
        }
        let ids = Tensor::from_slice(ids, &[1, new, 1], self.device())?;
        let logits = no_grad(|| -> Result<Tensor> {
            let x = Var::constant(self.embedding.tensor().patch_embedding(&ids)?);
            let x = self.trunk(&x, start, |layer, joined| {
                let out = self.attention.extend(joined.tensor(), cache.layer(layer), start)?;
                Ok(Var::constant(out))
            })?;
            let last = x.tensor().narrow(1, new - 1, 1)?.reshape(&[1, self.config.hidden])?;
            let logits = last.matmul(&self.head.tensor().t()?)?;
            Ok(logits.reshape(&[self.config.vocab_size])?)
        })?;
        cache.grow(new);
        Ok(logits)
    }

    /// Positions, blocks and final norm over embedded tokens [B, T, C], the first of which stands at `start`.
    fn trunk<A>(&self, embedded: &Var, start: usize, attend: A) -> Result<Var>
    where
        A: Fn(usize, &Var) -> GraphResult<Var>,
    {
        let length = embedded.shape()[1];
        let mut stream = Stream::new(match &self.positions {
            Some(table) => embedded.add(&table.narrow(0, start, length)?)?,
            None => embedded.clone(),
        });
        for (layer, block) in self.blocks.iter().enumerate() {
            let forward = |stream| block.forward(stream, &|joined| attend(layer, joined));
            stream = match self.recompute {
                Recompute::Blocks if stream.is_tracked() => self.recomputed(block, &stream.joined()?, length)?,
                Recompute::Cheap => recompute_cheap(|| forward(stream))?,
                Recompute::Blocks | Recompute::Nothing => forward(stream)?,
            };
        }
        let (_, normed) = stream.normalised(&self.final_norm)?;
        Ok(normed)
    }

    /// A block of training whose activations are computed again in the backward pass.
    fn recomputed(&self, block: &Arc<dyn Block>, x: &Var, positions: usize) -> GraphResult<Stream> {
        let (block, attention) = (block.clone(), self.attention.clone());
        let forward = move |inputs: &[Var]| {
            block.forward(Stream::new(inputs[0].clone()), &|joined| attention.train(joined, positions))?.joined()
        };
        Ok(Stream::new(recompute(forward, &[x])?))
    }

    fn check_positions(&self, positions: usize) -> Result<()> {
        if positions > self.config.max_positions {
            return Err(Error::Config(format!(
                "a sequence of {positions} positions is longer than the {} that the model has: shorten it, or make the model with \
                 a larger model.max_positions",
                self.config.max_positions
            )));
        }
        Ok(())
    }
}

const HEAD: &str = "lm_head.weight";

/// The parameters of a model, embedding first and head last.
fn specs(config: &ModelConfig) -> Vec<ParameterSpec> {
    let table = |name: &str| {
        let init = Init::Normal { std: config.init_std };
        ParameterSpec::new(name, &[config.vocab_size, config.hidden], init).with_rows_padded(VOCABULARY_MULTIPLE)
    };
    let norm = |name: &str, init| ParameterSpec::new(name, &[config.hidden], init);
    let mut specs = Vec::new();
    match config.dialect {
        Dialect::Llama => {
            specs.push(table(llama::EMBEDDING));
            specs.extend((0..config.layers).flat_map(|layer| llama::specs(config, layer)));
            specs.push(norm("model.norm.weight", Init::Ones));
        }
        Dialect::Gpt2 => {
            specs.push(table(gpt2::EMBEDDING));
            let init = Init::Normal { std: config.init_std };
            specs.push(ParameterSpec::new(gpt2::POSITIONS, &[config.max_positions, config.hidden], init));
            specs.extend((0..config.layers).flat_map(|layer| gpt2::specs(config, layer)));
            specs.push(norm("transformer.ln_f.weight", Init::Ones));
            specs.push(norm("transformer.ln_f.bias", Init::Zeros));
        }
    }
    if !config.tied_head {
        specs.push(table(HEAD));
    }
    specs
}
