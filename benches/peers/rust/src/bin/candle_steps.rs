//! Model S in candle: GPT-2's dialect, f32, tied head. Its fused LayerNorm and softmax have no gradient, so those that have one are used.

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, ops};
use patchgpt_peers::{FFN, HEADS, LAYERS, POSITIONS, ROWS, SEQUENCES, VOCABULARY, WIDTH, serve};

/// Makes parameters and keeps a list of them.
struct Maker {
    device: Device,
    made: Vec<Var>,
}

impl Maker {
    fn keep(&mut self, var: Var) -> Var {
        self.made.push(var.clone());
        var
    }

    fn matrix(&mut self, rows: usize, columns: usize) -> Result<Var> {
        let var = Var::randn(0f32, 0.02, (rows, columns), &self.device)?;
        Ok(self.keep(var))
    }

    fn vector(&mut self, length: usize, value: f32) -> Result<Var> {
        let var = Var::from_tensor(&Tensor::full(value, length, &self.device)?)?;
        Ok(self.keep(var))
    }

    fn norm(&mut self) -> Result<Pair> {
        Ok(Pair { weight: self.vector(WIDTH, 1.0)?, bias: self.vector(WIDTH, 0.0)? })
    }

    fn linear(&mut self, outputs: usize, inputs: usize) -> Result<Pair> {
        Ok(Pair { weight: self.matrix(outputs, inputs)?, bias: self.vector(outputs, 0.0)? })
    }
}

struct Pair {
    weight: Var,
    bias: Var,
}

impl Pair {
    fn norm(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm_slow(x, &self.weight, &self.bias, 1e-5)
    }

    fn linear(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)
    }
}

struct Block {
    attention_norm: Pair,
    joined: Pair,
    output: Pair,
    ffn_norm: Pair,
    up: Pair,
    down: Pair,
}

struct Gpt {
    embedding: Var,
    places: Var,
    blocks: Vec<Block>,
    norm: Pair,
    mask: Tensor,
}

impl Gpt {
    fn new(maker: &mut Maker) -> Result<Gpt> {
        let block = |maker: &mut Maker| -> Result<Block> {
            Ok(Block {
                attention_norm: maker.norm()?,
                joined: maker.linear(3 * WIDTH, WIDTH)?,
                output: maker.linear(WIDTH, WIDTH)?,
                ffn_norm: maker.norm()?,
                up: maker.linear(FFN, WIDTH)?,
                down: maker.linear(WIDTH, FFN)?,
            })
        };
        let hidden = |i: usize| if i % POSITIONS > i / POSITIONS { f32::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f32> = (0..POSITIONS * POSITIONS).map(hidden).collect();
        Ok(Gpt {
            embedding: maker.matrix(VOCABULARY, WIDTH)?,
            places: maker.matrix(POSITIONS, WIDTH)?,
            blocks: (0..LAYERS).map(|_| block(maker)).collect::<Result<_>>()?,
            norm: maker.norm()?,
            mask: Tensor::from_vec(mask, (1, 1, POSITIONS, POSITIONS), &maker.device)?,
        })
    }

    fn attend(&self, joined: &Tensor) -> Result<Tensor> {
        let head = WIDTH / HEADS;
        let parts = joined.reshape((SEQUENCES, POSITIONS, 3, HEADS, head))?.permute((2, 0, 3, 1, 4))?;
        let [q, k, v] = [0, 1, 2].map(|i| parts.get(i)?.contiguous());
        let scores = (q?.matmul(&k?.t()?)? * (1.0 / (head as f64).sqrt()))?.broadcast_add(&self.mask)?;
        ops::softmax(&scores, D::Minus1)?.matmul(&v?)?.transpose(1, 2)?.reshape((ROWS, WIDTH))
    }

    fn loss(&self, ids: &Tensor, targets: &Tensor, k: usize) -> Result<Tensor> {
        let mut x = self.embedding.index_select(ids, 0)?;
        if k > 1 {
            x = x.reshape((ROWS, k, WIDTH))?.mean(1)?;
        }
        x = x.reshape((SEQUENCES, POSITIONS, WIDTH))?.broadcast_add(&self.places)?.reshape((ROWS, WIDTH))?;
        for block in &self.blocks {
            let joined = block.joined.linear(&block.attention_norm.norm(&x)?)?;
            x = (&x + block.output.linear(&self.attend(&joined)?)?)?;
            let activated = block.up.linear(&block.ffn_norm.norm(&x)?)?.gelu()?;
            x = (&x + block.down.linear(&activated)?)?;
        }
        let logits = self.norm.norm(&x)?.matmul(&self.embedding.t()?)?;
        ops::log_softmax(&logits, 1)?.gather(targets, 1)?.mean_all()?.neg()
    }
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let mut maker = Maker { device: device.clone(), made: Vec::new() };
    let gpt = Gpt::new(&mut maker)?;
    let parameters = maker.made.iter().map(|var| var.elem_count()).sum();
    let settings = ParamsAdamW { lr: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let mut optimizer = AdamW::new(maker.made.clone(), settings)?;
    let mut step = |ids: Vec<u32>, targets: Vec<u32>, k: usize| -> Result<f32> {
        let ids = Tensor::from_vec(ids, ROWS * k, &device)?;
        let loss = gpt.loss(&ids, &Tensor::from_vec(targets, (ROWS, k), &device)?, k)?;
        let mut gradients = loss.backward()?;
        let mut squares = 0f32;
        for var in &maker.made {
            if let Some(gradient) = gradients.get(var) {
                squares += gradient.sqr()?.sum_all()?.to_scalar::<f32>()?;
            }
        }
        let clip = f64::from(squares.sqrt()).max(1.0).recip();
        if clip < 1.0 {
            for var in &maker.made {
                if let Some(gradient) = gradients.remove(var) {
                    gradients.insert(var, (gradient * clip)?);
                }
            }
        }
        optimizer.step(&gradients)?;
        loss.to_scalar()
    };
    serve("candle", "0.11.1", parameters, |batches, k| {
        let (ids, targets) = batches.next(k);
        step(ids, targets, k).expect("a step")
    });
    Ok(())
}
