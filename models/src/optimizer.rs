//! AdamW over the flat parameters, one pass for the global norm and one for the update (Loshchilov and Hutter,
//! arXiv 1711.05101; formula at `Backend::adamw`). The gradient is clipped by its global norm; learning rate, step number
//! and clip factor are 0-d tensors on the device, so that nothing waits for it.

use patchgpt_tensor::{DType, Rounded, Rounding, Tensor};

use crate::config::TrainConfig;
use crate::parameters::Parameters;
use crate::{Error, Result};

/// What does not change from step to step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the parameters with two or more dimensions.
    pub weight_decay: f64,
    /// How the weights that a bf16 model computes with come from its master weights.
    pub rounding: Rounding,
}

impl Default for AdamWSettings {
    /// Those of the authors of patch-level training: betas 0.9 and 0.95, eps 1e-8, weight decay 0.1; rounded to nearest.
    fn default() -> Self {
        AdamWSettings { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, rounding: Rounding::Nearest }
    }
}

impl From<&TrainConfig> for AdamWSettings {
    fn from(train: &TrainConfig) -> Self {
        let rounding = match train.stochastic_rounding {
            Some(true) => Rounding::Stochastic { seed: train.seed },
            Some(false) | None => Rounding::Nearest,
        };
        let &TrainConfig { beta1, beta2, eps, weight_decay, .. } = train;
        AdamWSettings { beta1, beta2, eps, weight_decay, rounding }
    }
}

/// The optimizer and its state: two moments in the layout of the parameters and the number of updates made.
pub struct AdamW {
    settings: AdamWSettings,
    first_moment: Tensor,
    second_moment: Tensor,
    steps: u64,
    learning_rate: Tensor,
    step: Tensor,
}

impl AdamW {
    /// An optimizer with moments of zero.
    ///
    /// # Errors
    /// Settings out of range: betas outside [0, 1), eps or weight decay negative or not finite.
    pub fn new(parameters: &Parameters, settings: AdamWSettings) -> Result<AdamW> {
        let AdamWSettings { beta1, beta2, eps, weight_decay, rounding: _ } = settings;
        let in_unit = |beta: f64| (0.0..1.0).contains(&beta);
        let positive = |x: f64| x.is_finite() && x >= 0.0;
        if !(in_unit(beta1) && in_unit(beta2) && positive(eps) && positive(weight_decay)) {
            return Err(Error::Config(format!(
                "AdamW takes betas of at least 0 and below 1, and eps and weight decay of at least 0, not beta1 = {beta1}, \
                 beta2 = {beta2}, eps = {eps}, weight_decay = {weight_decay}"
            )));
        }
        let (dtype, device) = (parameters.values().dtype(), parameters.device());
        let zeros = || Tensor::zeros(parameters.values().shape(), dtype, device);
        Ok(AdamW {
            settings,
            first_moment: zeros()?,
            second_moment: zeros()?,
            steps: 0,
            learning_rate: Tensor::zeros(&[], dtype, device)?,
            step: Tensor::zeros(&[], DType::I32, device)?,
        })
    }

    /// One update with the gradients at hand, scaled down to a global norm of `clip_norm` if theirs is larger. Returns the norm
    /// before clipping, 0-d on the device. The gradients stay as they are.
    ///
    /// # Errors
    /// A learning rate that is not finite, a `clip_norm` that is not positive, parameters of another model.
    pub fn step(&mut self, parameters: &Parameters, learning_rate: f64, clip_norm: Option<f64>) -> Result<Tensor> {
        AdamW::check(learning_rate)?;
        let gradients = parameters.gradients();
        let norm = Tensor::empty(&[], gradients.dtype(), gradients.device())?;
        self.learning_rate.fill_(learning_rate)?;
        self.step.fill_((self.steps + 1) as f64)?;
        self.update(parameters, &self.learning_rate, &self.step, clip_norm, &norm)?;
        self.advance();
        Ok(norm)
    }

    /// Refuses a learning rate that cannot be stepped by.
    pub(crate) fn check(learning_rate: f64) -> Result<()> {
        match learning_rate.is_finite() {
            true => Ok(()),
            false => Err(Error::Config(format!("the learning rate {learning_rate} is not a number to step by"))),
        }
    }

    /// The device's part of [`AdamW::step`]: the learning rate and the number of the update, counted from 1, are 0-d on the device, and the norm goes
    /// into `norm`, so that it can be recorded and replayed. The host counts with [`AdamW::advance`].
    pub(crate) fn update(
        &self,
        parameters: &Parameters,
        learning_rate: &Tensor,
        step: &Tensor,
        clip_norm: Option<f64>,
        norm: &Tensor,
    ) -> Result<()> {
        let clip = Tensor::empty(&[], norm.dtype(), norm.device())?;
        parameters.gradients().global_norm_into(clip_norm.unwrap_or(f64::INFINITY), norm, &clip)?;
        patchgpt_tensor::AdamW {
            parameters: parameters.values(),
            gradients: parameters.gradients(),
            first_moment: &self.first_moment,
            second_moment: &self.second_moment,
            learning_rate,
            clip: &clip,
            step,
            beta1: self.settings.beta1,
            beta2: self.settings.beta2,
            eps: self.settings.eps,
            weight_decay: self.settings.weight_decay,
            decay_len: parameters.decay_len(),
            rounded: parameters.rounded().map(|tensor| Rounded { tensor, rounding: self.settings.rounding }),
        }
        .run()?;
        Ok(())
    }

    /// Brings what a bf16 model computes with up to date with master weights that were loaded along with this optimizer's state: to the bits that the last
    /// update left, whatever the rounding; to nearest before the first.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn refresh(&self, parameters: &Parameters) -> Result<()> {
        match parameters.rounded() {
            Some(tensor) if self.steps > 0 => {
                let rounded = Rounded { tensor, rounding: self.settings.rounding };
                Ok(rounded.again(parameters.values(), self.steps as i32)?)
            }
            _ => parameters.refresh(),
        }
    }

    /// Tells that a replayed step has written the moments.
    pub(crate) fn mark_written(&self) {
        self.first_moment.mark_written();
        self.second_moment.mark_written();
    }

    /// Counts an update that the device has been given.
    pub(crate) fn advance(&mut self) {
        self.steps += 1;
    }

    /// Moments and step count back to zero.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn reset(&mut self) -> Result<()> {
        self.first_moment.fill_(0.0)?;
        self.second_moment.fill_(0.0)?;
        self.steps = 0;
        Ok(())
    }

    /// The running mean of the gradient, flat, in the layout of the parameters.
    pub fn first_moment(&self) -> &Tensor {
        &self.first_moment
    }

    /// The running mean of the squared gradient, flat, in the layout of the parameters.
    pub fn second_moment(&self) -> &Tensor {
        &self.second_moment
    }

    /// Updates made since the start or the last reset.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes over the state of a checkpoint: both moments, flat, of any floating-point dtype, and the step count.
    ///
    /// # Errors
    /// Moments of another length; a failure of the device.
    pub fn load(&mut self, first_moment: &Tensor, second_moment: &Tensor, steps: u64) -> Result<()> {
        for moment in [first_moment, second_moment] {
            if moment.shape() != self.first_moment.shape() {
                return Err(Error::Checkpoint(format!(
                    "the optimizer's moments have the shape {:?}, and this model's parameters {:?}: the checkpoint is of another \
                     model or dtype",
                    moment.shape(),
                    self.first_moment.shape()
                )));
            }
        }
        self.first_moment.copy_(first_moment)?;
        self.second_moment.copy_(second_moment)?;
        self.steps = steps;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use patchgpt_tensor::Device;

    use super::*;
    use crate::parameters::{Init, ParameterSpec};

    fn model() -> Parameters {
        let specs = vec![
            ParameterSpec::new("matrix", &[2, 3], Init::Normal { std: 1.0 }),
            ParameterSpec::new("bias", &[3], Init::Normal { std: 1.0 }),
        ];
        Parameters::build(specs, DType::F64, &Device::cpu().unwrap(), 3).unwrap()
    }

    fn set_gradients(parameters: &Parameters, f: impl Fn(usize) -> f64) {
        for parameter in parameters.iter() {
            let view = parameter.view(parameters.gradients()).unwrap();
            let values: Vec<f64> = (0..view.len()).map(|i| f(parameter.start() + i)).collect();
            view.write_from(&values).unwrap();
        }
    }

    #[test]
    fn matrices_decay_and_vectors_do_not() {
        let parameters = model();
        let before = parameters.values().to_f64_vec().unwrap();
        let mut optimizer = AdamW::new(&parameters, AdamWSettings::default()).unwrap();
        let norm = optimizer.step(&parameters, 0.5, None).unwrap();
        assert_eq!(norm.item().unwrap(), 0.0);
        let after = parameters.values().to_f64_vec().unwrap();
        for (i, (b, a)) in before.iter().zip(&after).enumerate() {
            let expected = if i < parameters.decay_len() { b * (1.0 - 0.5 * 0.1) } else { *b };
            assert!((a - expected).abs() <= 1e-15 * b.abs(), "element {i}: {a} instead of {expected}");
        }
    }

    #[test]
    fn the_norm_is_of_all_gradients_and_clipping_scales_the_first_moment() {
        let parameters = model();
        set_gradients(&parameters, |_| 2.0);
        let mut optimizer = AdamW::new(&parameters, AdamWSettings::default()).unwrap();
        let norm = optimizer.step(&parameters, 1e-3, Some(1.0)).unwrap().item().unwrap();
        assert!((norm - 6.0).abs() < 1e-14, "nine gradients of 2 have the norm 6, got {norm}");
        let moment = optimizer.first_moment().to_f64_vec().unwrap();
        let expected = 0.1 * 2.0 / (6.0 + 1e-6);
        assert!((moment[0] - expected).abs() < 1e-15);
        assert_eq!(moment[6], 0.0, "gaps stay zero");
    }

    #[test]
    fn a_loaded_state_continues_to_the_bit_and_a_reset_starts_over() {
        let run = |parameters: &Parameters, optimizer: &mut AdamW, from: u64, to: u64| {
            for step in from..to {
                set_gradients(parameters, |i| ((i as u64 + 3 * step) % 7) as f64 - 3.0);
                optimizer.step(parameters, 1e-2, Some(1.0)).unwrap();
            }
        };
        let whole = model();
        let mut optimizer = AdamW::new(&whole, AdamWSettings::default()).unwrap();
        run(&whole, &mut optimizer, 0, 6);

        let parts = model();
        let mut first = AdamW::new(&parts, AdamWSettings::default()).unwrap();
        run(&parts, &mut first, 0, 3);
        let mut second = AdamW::new(&parts, AdamWSettings::default()).unwrap();
        second.load(first.first_moment(), first.second_moment(), first.steps()).unwrap();
        run(&parts, &mut second, 3, 6);
        assert_eq!(whole.values().to_f64_vec().unwrap(), parts.values().to_f64_vec().unwrap());
        assert_eq!(second.steps(), 6);

        second.reset().unwrap();
        assert_eq!(second.steps(), 0);
        assert!(second.second_moment().to_f64_vec().unwrap().iter().all(|&v| v == 0.0));
    }

    /// Weights of bf16 come to the same bits from a checkpoint's master weights and step as from the update, and on average they are the master weights.
    #[test]
    fn stochastic_rounding_is_made_again_from_a_loaded_state() {
        let device = Device::cpu().unwrap();
        let specs = vec![ParameterSpec::new("matrix", &[100, 100], Init::Ones)];
        let parameters = Parameters::build(specs.clone(), DType::BF16, &device, 3).unwrap();
        let settings =
            AdamWSettings { weight_decay: 0.0, rounding: Rounding::Stochastic { seed: 5 }, ..Default::default() };
        let mut optimizer = AdamW::new(&parameters, settings).unwrap();
        parameters.gradients().fill_(1.0).unwrap();
        let weights = |parameters: &Parameters| parameters.rounded().unwrap().to_f64_vec().unwrap();
        // From 1 down, by an eighth of the distance to the next number of bf16.
        let mut steps = Vec::new();
        for _ in 0..3 {
            optimizer.step(&parameters, 2f64.powi(-11), None).unwrap();
            let master = parameters.values().to_f64_vec().unwrap()[0];
            let mean = weights(&parameters).iter().sum::<f64>() / 10_000.0;
            // Four standard deviations of the mean of so many.
            assert!((mean - master).abs() < 4.0 * 2f64.powi(-8) * 0.5 / 100.0, "{mean} for {master}");
            steps.push(weights(&parameters));
        }
        assert!(steps[0] != steps[1] && steps[1] != steps[2]);

        let resumed = Parameters::zeros(specs, DType::BF16, &device).unwrap();
        resumed.values().copy_(parameters.values()).unwrap();
        let mut loaded = AdamW::new(&resumed, settings).unwrap();
        loaded.load(optimizer.first_moment(), optimizer.second_moment(), optimizer.steps()).unwrap();
        loaded.refresh(&resumed).unwrap();
        assert_eq!(weights(&resumed), steps[2]);
    }

    #[test]
    fn mistakes_are_errors() {
        let parameters = model();
        let refused = |name: &str, value: f64, settings: AdamWSettings| {
            let message = AdamW::new(&parameters, settings).err().unwrap().to_string();
            assert!(message.contains(&format!("{name} = {value}")), "{message}");
        };
        let fine = AdamWSettings { beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, rounding: Rounding::Nearest };
        assert!(AdamW::new(&parameters, fine).is_ok());
        for beta in [1.0, -0.1, f64::NAN] {
            refused("beta1", beta, AdamWSettings { beta1: beta, ..fine });
            refused("beta2", beta, AdamWSettings { beta2: beta, ..fine });
        }
        for wrong in [-1e-9, f64::INFINITY, f64::NAN] {
            refused("eps", wrong, AdamWSettings { eps: wrong, ..fine });
            refused("weight_decay", wrong, AdamWSettings { weight_decay: wrong, ..fine });
        }
        let mut optimizer = AdamW::new(&parameters, AdamWSettings::default()).unwrap();
        for rate in [f64::NAN, f64::INFINITY] {
            assert!(optimizer.step(&parameters, rate, None).is_err());
        }
        for clip in [0.0, -1.0, f64::NAN] {
            assert!(optimizer.step(&parameters, 1e-3, Some(clip)).is_err());
        }
        assert_eq!(optimizer.steps(), 0, "a refused step does not count");
        let short = Tensor::zeros(&[3], DType::F64, &Device::cpu().unwrap()).unwrap();
        assert!(optimizer.load(&short, &short, 1).err().unwrap().to_string().contains("[3]"));
    }
}
