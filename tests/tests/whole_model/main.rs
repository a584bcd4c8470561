//! Whole models in f64: the gradient of the loss for every parameter against central differences along random directions, in both
//! dialects, both regimes, tied and not, with activations kept and recomputed.

use std::sync::{Arc, Mutex};

use patchgpt_autograd::gradcheck::{Method, Options, Report, Verdict, gradcheck};
use patchgpt_autograd::{Context, Error, Function, Gradients, Result, Saved, Var, apply};
use patchgpt_models::config::{Config, Dialect, ModelConfig, Recompute};
use patchgpt_models::gpt::Inputs;
use patchgpt_models::regime::{Regime, TargetWeights};
use patchgpt_models::{Gpt, TrainBatch};
use patchgpt_tensor::{DType, Device, IGNORE_INDEX, Tensor};

const VOCABULARY: usize = 23;
const POSITIONS: usize = 5;
const SEQUENCES: usize = 2;

fn config(dialect: Dialect, tied_head: bool) -> ModelConfig {
    ModelConfig {
        dialect,
        layers: 2,
        hidden: 12,
        ffn: 10,
        heads: 6,
        kv_heads: if dialect == Dialect::Llama { 2 } else { 6 },
        vocab_size: VOCABULARY,
        max_positions: 7,
        // Large enough for attention to be far from uniform.
        init_std: 0.4,
        tied_head,
        ..Config::preset("tiny").unwrap().model
    }
}

/// The loss of a model as a function of its parameters, one input each, whose gradient is what the model's own backward gives.
struct Loss {
    gpt: Arc<Gpt>,
    batch: TrainBatch,
    /// Parameter and element whose gradient is made wrong.
    spoiled: Option<(usize, usize)>,
    /// The model's parameters are written and read as one.
    turn: Arc<Mutex<()>>,
}

/// An error of the model as one of the graph.
fn told(error: patchgpt_models::Error) -> Error {
    Error::value("loss", error.to_string())
}

impl Function for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn forward(&self, inputs: &[&Tensor], context: &mut Context) -> Result<Vec<Tensor>> {
        let _turn = self.turn.lock().unwrap();
        let parameters = self.gpt.parameters();
        for (parameter, value) in parameters.iter().zip(inputs) {
            parameter.var().tensor().copy_(value)?;
        }
        parameters.zero_gradients().map_err(told)?;
        let scale = self.batch.mean_scale().map_err(told)?;
        let loss = self.gpt.loss(&self.batch, &scale).map_err(told)?;
        let value = loss.tensor().copy()?;
        if !context.needs_any_gradient() {
            return Ok(vec![value]);
        }
        loss.backward()?;
        for (i, parameter) in parameters.iter().enumerate() {
            let gradient = parameter.view(parameters.gradients()).map_err(told)?.copy()?;
            if let Some((_, element)) = self.spoiled.filter(|(spoiled, _)| *spoiled == i) {
                let mut values = gradient.to_vec::<f64>()?;
                values[element] = -values[element];
                gradient.write_from(&values)?;
            }
            context.save(&gradient);
        }
        Ok(vec![value])
    }

    fn backward(&self, saved: &Saved, d_outputs: &[Option<Tensor>], d_inputs: &mut Gradients) -> Result<()> {
        let d_loss = saved.d_out(d_outputs)?;
        for i in 0..self.gpt.parameters().iter().count() {
            if d_inputs.wanted(i) {
                d_inputs.add(i, saved.get(i)?.mul(d_loss)?)?;
            }
        }
        Ok(())
    }
}

fn model(config: &ModelConfig) -> Gpt {
    let gpt = Gpt::new(config, DType::F64, &Device::cpu_with_threads(1).unwrap(), 11).unwrap();
    // Norms and biases away from 1 and 0, where a dropped factor would not show.
    for (i, parameter) in gpt.parameters().iter().enumerate().filter(|(_, p)| p.shape().len() == 1) {
        let value = |j: usize| 0.7 + ((3 * i + 7 * j) % 10) as f64 * 0.05;
        let values: Vec<f64> = (0..parameter.shape()[0]).map(value).collect();
        parameter.var().tensor().write_from(&values).unwrap();
    }
    gpt
}

/// A batch with some targets ignored, a row of them among these, and tokens that repeat within a patch.
fn batch(gpt: &Gpt, regime: &Regime) -> TrainBatch {
    let (ki, ko) = (regime.input_patch, regime.target_patch);
    let id = |i: usize| ((i * i * 5 + 3 * i) % 11) as i32;
    let read: Vec<i32> = (0..SEQUENCES * POSITIONS * ki).map(id).collect();
    let mut targets: Vec<i32> = (0..SEQUENCES * POSITIONS * ko).map(|i| id(i + 4)).collect();
    targets[3 * ko..4 * ko].fill(IGNORE_INDEX);
    targets[7 * ko] = IGNORE_INDEX;
    if ko > 1 {
        targets[ko + 1] = targets[ko];
    }
    let inputs = Inputs::new(&read, SEQUENCES, POSITIONS, VOCABULARY, gpt.device()).unwrap();
    TrainBatch::with_targets(inputs, &targets, &regime.weights(), DType::F64).unwrap()
}

fn check(gpt: &Arc<Gpt>, regime: &Regime, spoiled: Option<(usize, usize)>) -> Report {
    let batch = batch(gpt, regime);
    let turn = Arc::new(Mutex::new(()));
    let loss = |parameters: &[Var]| {
        let function = Loss { gpt: gpt.clone(), batch: batch.clone(), spoiled, turn: turn.clone() };
        Ok(apply(function, &parameters.iter().collect::<Vec<_>>())?.remove(0))
    };
    let copies: Vec<Tensor> = gpt.parameters().iter().map(|p| p.var().tensor().copy().unwrap()).collect();
    let options = Options { element_limit: 0, directions: 4, each_alone: false, ..Options::default() };
    gradcheck(loss, &copies, &options).unwrap()
}

fn regimes() -> [Regime; 4] {
    let weighted = Regime { target_weights: TargetWeights::Reciprocal, ..Regime::patch(3) };
    [Regime::token(), Regime::patch(2), weighted, Regime { target_patch: 1, ..Regime::patch(4) }]
}

const LEVELS: [Recompute; 3] = [Recompute::Nothing, Recompute::Cheap, Recompute::Blocks];

#[test]
fn gradients_of_every_parameter() {
    for dialect in [Dialect::Llama, Dialect::Gpt2] {
        for tied_head in [false, true] {
            let config = config(dialect, tied_head);
            for (i, regime) in regimes().iter().enumerate() {
                let gpt = Arc::new(model(&config).with_recompute(LEVELS[i % 3]));
                let names: Vec<String> = gpt.parameters().iter().map(|p| p.name().to_string()).collect();
                let report = check(&gpt, regime, None);
                assert_eq!(
                    report.verdict(),
                    Verdict::Passed,
                    "{dialect}, tied {tied_head}, {regime:?}, {names:?}: {report}"
                );
                assert!(report.inputs.iter().all(|input| input.method == Method::Directions && input.failed == 0));
            }
        }
    }
}

/// One element of one matrix with the wrong sign: the checker names both.
#[test]
fn one_wrong_element_of_a_model_is_found() {
    for dialect in [Dialect::Llama, Dialect::Gpt2] {
        let gpt = Arc::new(model(&config(dialect, false)));
        let matrices =
            gpt.parameters().iter().enumerate().filter(|(_, p)| p.shape().len() == 2 && !p.name().contains("embed"));
        for (i, parameter) in matrices.skip(1).step_by(2) {
            let columns = parameter.shape()[1];
            let report = check(&gpt, &Regime::patch(2), Some((i, 2 * columns + 1)));
            assert_eq!(report.verdict(), Verdict::Failed, "{}: {report}", parameter.name());
            let wrong: Vec<usize> = (0..report.inputs.len()).filter(|&j| report.inputs[j].failed > 0).collect();
            assert_eq!(wrong, [i], "{}: {report}", parameter.name());
            assert_eq!(report.inputs[i].worst.as_ref().unwrap().index, Some(vec![2, 1]), "{report}");
        }
    }
}
