//! Text from a model, token by token over a cache of keys and values: p = softmax(logits / temperature), cut to the `top_k`
//! likeliest tokens and to the smallest set of them that holds `top_p` of the probability (Holtzman et al.,
//! arXiv 1904.09751). Draw number i depends on the seed and i only, by the counter-based generator of the tensors.

use std::ops::ControlFlow;

use patchgpt_tensor::{DType, Device, Distribution, Tensor};

use crate::gpt::Gpt;
use crate::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Only so many of the likeliest tokens are drawn from.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together hold this probability are drawn from.
    pub top_p: Option<f64>,
    /// Decides the draws.
    pub seed: u64,
}

impl Default for Sampling {
    /// Plain sampling: temperature 1, nothing cut off, seed 0.
    fn default() -> Self {
        Sampling { temperature: 1.0, top_k: None, top_p: None, seed: 0 }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A negative temperature, a `top_k` of 0, a `top_p` outside (0, 1].
    pub fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::Config(message));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return fail(format!(
                "the temperature must be a number of at least 0 (0 takes the likeliest token), not {}",
                self.temperature
            ));
        }
        if self.top_k == Some(0) {
            return fail("top-k must be at least 1; leave it out to draw from all tokens".into());
        }
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => {
                fail(format!("top-p must be above 0 and at most 1, not {p}; leave it out to draw from all tokens"))
            }
            _ => Ok(()),
        }
    }

    /// Number `index` of the uniform draws from [0, 1) that the seed decides; the same on every device.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn draw(&self, index: u64, device: &Device) -> Result<f64> {
        let uniform = Distribution::Uniform { low: 0.0, high: 1.0 };
        Ok(Tensor::random(&[], uniform, self.seed, index, DType::F64, device)?.item()?)
    }

    /// Chooses a token from `logits`, given a uniform draw `u` from [0, 1).
    ///
    /// # Errors
    /// Settings out of range; no logits, or logits that are NaN or infinitely large.
    pub fn choose(&self, logits: &[f64], u: f64) -> Result<usize> {
        self.validate()?;
        let candidates = self.candidates(logits)?;
        let total: f64 = candidates.iter().map(|&(_, p)| p).sum();
        let mut left = u * total;
        for &(token, p) in &candidates {
            left -= p;
            if left < 0.0 {
                return Ok(token);
            }
        }
        // Rounding may leave a trace of the last candidate.
        Ok(candidates[candidates.len() - 1].0)
    }

    /// Tokens that can be drawn with their probabilities before cutting, the likeliest first, of equals the smaller id.
    fn candidates(&self, logits: &[f64]) -> Result<Vec<(usize, f64)>> {
        if logits.is_empty() || logits.iter().any(|l| l.is_nan() || *l == f64::INFINITY) {
            return Err(Error::Data(format!(
                "{} logits to choose from, some of which may not be numbers: the model's weights are damaged or diverged",
                logits.len()
            )));
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if self.temperature == 0.0 {
            return Ok(vec![(order[0], 1.0)]);
        }
        let largest = logits[order[0]];
        let weight = |&token: &usize| ((logits[token] - largest) / self.temperature).exp();
        let total: f64 = order.iter().map(weight).sum();
        order.truncate(self.top_k.unwrap_or(usize::MAX));
        let mut candidates: Vec<(usize, f64)> = order.iter().map(|token| (*token, weight(token) / total)).collect();
        if let Some(top_p) = self.top_p {
            let kept: f64 = candidates.iter().map(|&(_, p)| p).sum();
            let mut sum = 0.0;
            let enough = candidates.iter().position(|&(_, p)| {
                sum += p / kept;
                sum >= top_p
            });
            candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
        }
        Ok(candidates)
    }
}

/// Continues `prompt` by up to `max_tokens` tokens. `on_token` sees each as it is chosen and may stop. Returns the new tokens.
///
/// The model reads at most as many tokens as it has positions. When they are full, the cache is emptied and the last half of
/// the text so far is read again, from position 0 on; of a longer prompt, the last tokens that fit are read.
///
/// # Errors
/// An empty prompt, ids outside the vocabulary, settings out of range, logits that are no numbers.
pub fn generate(
    gpt: &Gpt,
    prompt: &[i32],
    max_tokens: usize,
    sampling: &Sampling,
    mut on_token: impl FnMut(i32) -> ControlFlow<()>,
) -> Result<Vec<i32>> {
    sampling.validate()?;
    if prompt.is_empty() {
        return Err(Error::Config(
            "the prompt holds no token: generation continues a text, so give at least one character".into(),
        ));
    }
    let context = gpt.config().max_positions;
    let mut text = prompt.to_vec();
    let mut cache = gpt.cache(prompt.len().saturating_add(max_tokens))?;
    // Tokens at the end of the text that the cache has not read.
    let mut unread = prompt.len().min(context);
    for draw in 0..max_tokens as u64 {
        if cache.len() + unread > context {
            cache.clear();
            unread = (context / 2).max(1);
        }
        let logits = gpt.decode(&text[text.len() - unread..], &mut cache)?;
        // A vocabulary fits into i32: ids are i32 tensors.
        let u = sampling.draw(draw, gpt.device())?;
        let token = sampling.choose(&logits.to_f64_vec()?, u)? as i32;
        text.push(token);
        unread = 1;
        if on_token(token).is_break() {
            break;
        }
    }
    Ok(text.split_off(prompt.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ModelConfig};

    const LOGITS: [f64; 5] = [0.0, 3.0, 1.0, 3.0, -2.0];

    /// Shares of the tokens among many draws.
    fn shares(sampling: Sampling) -> [f64; 5] {
        const DRAWS: u64 = 4000;
        let device = Device::cpu_with_threads(1).unwrap();
        let mut counts = [0u64; 5];
        for index in 0..DRAWS {
            let u = sampling.draw(index, &device).unwrap();
            counts[sampling.choose(&LOGITS, u).unwrap()] += 1;
        }
        counts.map(|count| count as f64 / DRAWS as f64)
    }

    fn expected(temperature: f64, allowed: &[usize]) -> [f64; 5] {
        let mut p = [0.0; 5];
        for &token in allowed {
            p[token] = (LOGITS[token] / temperature).exp();
        }
        let total: f64 = p.iter().sum();
        p.map(|p| p / total)
    }

    #[test]
    fn draws_follow_the_distribution_that_is_left() {
        let plain = Sampling { seed: 9, ..Sampling::default() };
        let cases = [
            (plain, 1.0, &[0, 1, 2, 3, 4][..]),
            (Sampling { temperature: 2.5, ..plain }, 2.5, &[0, 1, 2, 3, 4]),
            (Sampling { top_k: Some(3), ..plain }, 1.0, &[1, 2, 3]),
            (Sampling { top_k: Some(1), ..plain }, 1.0, &[1]),
            // 0.465 each for 1 and 3, then 0.063.
            (Sampling { top_p: Some(0.9), ..plain }, 1.0, &[1, 3]),
            (Sampling { top_p: Some(0.95), ..plain }, 1.0, &[1, 2, 3]),
            (Sampling { top_p: Some(1.0), top_k: Some(2), ..plain }, 1.0, &[1, 3]),
            (Sampling { top_p: Some(1e-9), ..plain }, 1.0, &[1]),
        ];
        for (sampling, temperature, allowed) in cases {
            let (found, expected) = (shares(sampling), expected(temperature, allowed));
            for (f, e) in found.iter().zip(expected) {
                // Four standard deviations of a share among 4000 draws, and nothing where nothing is allowed.
                assert!((f - e).abs() <= 4.0 * (e * (1.0 - e) / 4000.0).sqrt(), "{sampling:?}: {found:?}");
            }
        }
    }

    #[test]
    fn temperature_zero_takes_the_first_of_the_likeliest() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert!((0..20).all(|i| greedy.choose(&LOGITS, i as f64 / 20.0).unwrap() == 1));
    }

    #[test]
    fn mistakes_are_errors() {
        let plain = Sampling::default();
        for (wrong, word) in [
            (Sampling { temperature: -1.0, ..plain }, "-1"),
            (Sampling { temperature: f64::NAN, ..plain }, "NaN"),
            (Sampling { top_k: Some(0), ..plain }, "top-k"),
            (Sampling { top_p: Some(0.0), ..plain }, "top-p"),
            (Sampling { top_p: Some(1.5), ..plain }, "1.5"),
        ] {
            let error = wrong.choose(&LOGITS, 0.5).unwrap_err();
            assert!(error.to_string().contains(word) && error.is_usage(), "{error}");
        }
        assert!(plain.choose(&[0.0, f64::NAN], 0.5).is_err());
        assert!(plain.choose(&[], 0.5).is_err());
        let gpt = small(8);
        assert!(generate(&gpt, &[], 3, &plain, |_| ControlFlow::Continue(())).is_err());
        assert!(generate(&gpt, &[50], 3, &plain, |_| ControlFlow::Continue(())).is_err());
    }

    fn small(max_positions: usize) -> Gpt {
        let config = ModelConfig {
            layers: 2,
            hidden: 16,
            ffn: 24,
            heads: 4,
            kv_heads: 2,
            vocab_size: 50,
            max_positions,
            // Large weights, so that logits are far apart.
            init_std: 0.3,
            ..Config::preset("tiny").unwrap().model
        };
        Gpt::new(&config, DType::F32, &Device::cpu_with_threads(1).unwrap(), 4).unwrap()
    }

    /// Greedy continuation by full passes over what the rule says the model reads.
    fn greedy_without_cache(gpt: &Gpt, prompt: &[i32], count: usize) -> Vec<i32> {
        let context = gpt.config().max_positions;
        let mut read = prompt[prompt.len().saturating_sub(context)..].to_vec();
        let mut text = prompt.to_vec();
        for _ in 0..count {
            if read.len() > context {
                read = text[text.len() - context / 2..].to_vec();
            }
            let ids = Tensor::from_slice(&read, &[1, read.len(), 1], gpt.device()).unwrap();
            let logits = gpt.logits(&ids).unwrap().narrow(1, read.len() - 1, 1).unwrap();
            let logits = logits.to_f64_vec().unwrap();
            let best = (0..50).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as i32;
            read.push(best);
            text.push(best);
        }
        text[prompt.len()..].to_vec()
    }

    #[test]
    fn the_context_slides_when_it_is_full() {
        let gpt = small(8);
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        for length in [1, 5, 8, 11] {
            let prompt: Vec<i32> = (0..length).map(|i| (7 * i + 3) % 50).collect();
            let mut streamed = Vec::new();
            let new = generate(&gpt, &prompt, 21, &greedy, |token| {
                streamed.push(token);
                ControlFlow::Continue(())
            });
            let new = new.unwrap();
            assert_eq!(new, streamed);
            assert_eq!(new, greedy_without_cache(&gpt, &prompt, 21), "prompt of {length}");
        }
    }

    #[test]
    fn a_seed_decides_the_text_and_the_callback_may_stop() {
        let gpt = small(32);
        let text = |seed, stop: usize| {
            let mut seen = 0;
            let sampling = Sampling { seed, ..Sampling::default() };
            let stopping = |_| {
                seen += 1;
                if seen == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            generate(&gpt, &[1, 2, 3], 12, &sampling, stopping).unwrap()
        };
        assert_eq!(text(1, 0).len(), 12);
        assert_eq!(text(1, 0), text(1, 0));
        assert_ne!(text(1, 0), text(2, 0));
        assert_eq!(text(1, 5), text(1, 0)[..5]);
    }
}
