//! AdamW element by element (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2 with a constant schedule multiplier).

/// Settings of one update.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Learning rate.
    pub learning_rate: f64,
    /// Factor on the gradient.
    pub clip: f64,
    /// Number of the update, from 1.
    pub step: i32,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the first `decay_len` parameters.
    pub weight_decay: f64,
    /// How many parameters decay.
    pub decay_len: usize,
}

/// Updates parameters and moments in place.
pub fn update(s: Settings, parameters: &mut [f64], gradients: &[f64], first: &mut [f64], second: &mut [f64]) {
    for i in 0..parameters.len() {
        let g = gradients[i] * s.clip;
        first[i] = s.beta1 * first[i] + (1.0 - s.beta1) * g;
        second[i] = s.beta2 * second[i] + (1.0 - s.beta2) * g * g;
        let m = first[i] / (1.0 - s.beta1.powi(s.step));
        let v = second[i] / (1.0 - s.beta2.powi(s.step));
        let decay = if i < s.decay_len { s.weight_decay } else { 0.0 };
        parameters[i] -= s.learning_rate * (m / (v.sqrt() + s.eps) + decay * parameters[i]);
    }
}
