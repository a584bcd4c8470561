//! Model S in burn on its `flex` backend: GPT-2's dialect, f32, tied head. Its clipping takes the norm of each tensor by itself.

use burn::grad_clipping::GradientClippingConfig;
use burn::module::{Initializer, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData, activation};
use patchgpt_peers::{FFN, HEADS, LAYERS, POSITIONS, ROWS, SEQUENCES, VOCABULARY, WIDTH, serve};

#[derive(Module, Debug)]
struct Block {
    attention_norm: LayerNorm,
    joined: Linear,
    output: Linear,
    ffn_norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(device: &Device) -> Block {
        let norm = || LayerNormConfig::new(WIDTH).init(device);
        let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
        Block {
            attention_norm: norm(),
            joined: linear(WIDTH, 3 * WIDTH),
            output: linear(WIDTH, WIDTH),
            ffn_norm: norm(),
            up: linear(WIDTH, FFN),
            down: linear(FFN, WIDTH),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let joined = self.joined.forward(self.attention_norm.forward(x.clone()));
        let part = |i: usize| {
            let part = joined.clone().slice([0..SEQUENCES, 0..POSITIONS, i * WIDTH..(i + 1) * WIDTH]);
            part.reshape([SEQUENCES, POSITIONS, HEADS, WIDTH / HEADS]).swap_dims(1, 2)
        };
        let causal = AttentionModuleOptions { is_causal: true, ..Default::default() };
        let attended = attention(part(0), part(1), part(2), None, None, causal);
        let x = x + self.output.forward(attended.swap_dims(1, 2).reshape([SEQUENCES, POSITIONS, WIDTH]));
        let activated = activation::gelu_approximate(self.up.forward(self.ffn_norm.forward(x.clone())));
        x + self.down.forward(activated)
    }
}

#[derive(Module, Debug)]
struct Gpt {
    embedding: Embedding,
    places: Param<Tensor<2>>,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl Gpt {
    fn new(device: &Device) -> Gpt {
        let normal = Initializer::Normal { mean: 0.0, std: 0.02 };
        Gpt {
            embedding: EmbeddingConfig::new(VOCABULARY, WIDTH).with_initializer(normal).init(device),
            places: Param::from_tensor(Tensor::random([POSITIONS, WIDTH], Distribution::Normal(0.0, 0.02), device)),
            blocks: (0..LAYERS).map(|_| Block::new(device)).collect(),
            norm: LayerNormConfig::new(WIDTH).init(device),
        }
    }

    fn loss(&self, ids: Tensor<2, Int>, targets: Tensor<2, Int>, k: usize) -> Tensor<1> {
        let mut x = self.embedding.forward(ids);
        if k > 1 {
            x = x.reshape([ROWS, k, WIDTH]).mean_dim(1).reshape([SEQUENCES, POSITIONS, WIDTH]);
        }
        x = x + self.places.val().unsqueeze::<3>();
        for block in &self.blocks {
            x = block.forward(x);
        }
        let logits = self.norm.forward(x).reshape([ROWS, WIDTH]).matmul(self.embedding.weight.val().transpose());
        activation::log_softmax(logits, 1).gather(1, targets).mean().neg()
    }
}

fn main() {
    let device = Device::flex().autodiff();
    let mut gpt = Gpt::new(&device);
    let parameters = gpt.num_params();
    let clipping = GradientClippingConfig::Norm(1.0);
    let settings = AdamWConfig::new().with_beta_2(0.95).with_epsilon(1e-8).with_weight_decay(0.1);
    let mut optimizer = settings.with_grad_clipping(Some(clipping)).init();
    serve("burn", "0.22.1", parameters, |batches, k| {
        let (ids, targets) = batches.next(k);
        let place = |ids: Vec<u32>, shape: [usize; 2]| {
            let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
            Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device)
        };
        let loss = gpt.loss(place(ids, [SEQUENCES, POSITIONS * k]), place(targets, [ROWS, k]), k);
        let gradients = GradientsParams::from_grads(loss.backward(), &gpt);
        gpt = optimizer.step(3e-4f64, gpt.clone(), gradients);
        loss.into_scalar::<f32>()
    });
}
