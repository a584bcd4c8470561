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

/// `x`, a number of f32, rounded to bf16: toward zero, or away from zero where the share of the distance that x has come exceeds what is left to
/// the random number, in 65536 steps; `element` of update `step`.
pub fn round_stochastically(x: f64, element: u64, step: u32, seed: u64) -> f64 {
    let magnitude = x.abs();
    if magnitude == 0.0 {
        return x;
    }
    // Normal numbers of f32 and bf16 alike have their leading bit at 2^e; bf16 keeps 7 bits below it.
    let exponent = magnitude.log2().floor().max(-126.0);
    let unit = (exponent - 7.0).exp2();
    let steps = magnitude / unit;
    let share = (steps - steps.floor()) * 65536.0;
    let block = element / 8;
    let words = philox([block % WORD, block / WORD, u64::from(step), 1], seed);
    let word = words[(element % 8 / 2) as usize];
    let random = if element.is_multiple_of(2) { word % 65536 } else { word / 65536 };
    let away = share.floor() + random as f64 >= 65536.0;
    x.signum() * unit * (steps.floor() + if away { 1.0 } else { 0.0 })
}

/// One more than the largest number of 32 bits.
const WORD: u64 = 1 << 32;

/// Philox4x32-10 in numbers below 2^32 (Salmon et al., 2011, section 3.4).
fn philox([mut a, mut b, mut c, mut d]: [u64; 4], seed: u64) -> [u64; 4] {
    let (mut low, mut high) = (seed % WORD, seed / WORD);
    for _ in 0..10 {
        let (first, second) = (a * 0xD251_1F53, c * 0xCD9E_8D57);
        (a, b, c, d) = ((second / WORD) ^ b ^ low, second % WORD, (first / WORD) ^ d ^ high, first % WORD);
        (low, high) = ((low + 0x9E37_79B9) % WORD, (high + 0xBB67_AE85) % WORD);
    }
    [a, b, c, d]
}
