//! What both peers share: the sizes of model S, batches of random ids, and the protocol of `benches/src/bin/steps.rs`.

use std::io::BufRead;
use std::time::Instant;

/// Layers.
pub const LAYERS: usize = 6;
/// Width.
pub const WIDTH: usize = 384;
/// Heads.
pub const HEADS: usize = 6;
/// Feed-forward width.
pub const FFN: usize = 1536;
/// Vocabulary.
pub const VOCABULARY: usize = 8192;
/// Positions of a sequence.
pub const POSITIONS: usize = 256;
/// Sequences of a step.
pub const SEQUENCES: usize = 8;
/// Tokens of a patch.
pub const PATCH: usize = 4;
/// Positions of a step.
pub const ROWS: usize = SEQUENCES * POSITIONS;

/// Random ids, new ones for every step.
pub struct Batches {
    state: u64,
}

impl Batches {
    fn id(&mut self) -> u32 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 33) as u32 % VOCABULARY as u32
    }

    /// Inputs and targets, [B, T, k] each: the targets of a patch are the ids of the next.
    pub fn next(&mut self, k: usize) -> (Vec<u32>, Vec<u32>) {
        let (mut inputs, mut targets) = (Vec::with_capacity(ROWS * k), Vec::with_capacity(ROWS * k));
        for _ in 0..SEQUENCES {
            let window: Vec<u32> = (0..(POSITIONS + 1) * k).map(|_| self.id()).collect();
            inputs.extend_from_slice(&window[..POSITIONS * k]);
            targets.extend_from_slice(&window[k..]);
        }
        (inputs, targets)
    }
}

/// Answers requests with `step(batches, K)`, which returns the loss.
pub fn serve(name: &str, version: &str, parameters: usize, mut step: impl FnMut(&mut Batches, usize) -> f32) {
    println!(
        "{{\"name\": \"{name}\", \"version\": \"{version}\", \"device\": \"cpu\", \"parameters\": {parameters}, \
         \"tokens\": {{\"token\": {ROWS}, \"patch\": {}}}}}",
        PATCH * ROWS
    );
    let mut batches = Batches { state: 1 };
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let k = match line.trim() {
            "token" => 1,
            "patch" => PATCH,
            _ => {
                println!("{{\"peak_memory_bytes\": {}}}", peak_memory());
                continue;
            }
        };
        let begun = Instant::now();
        let loss = step(&mut batches, k);
        println!("{{\"seconds\": {}, \"loss\": {loss}}}", begun.elapsed().as_secs_f64());
    }
}

/// VmHWM in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
