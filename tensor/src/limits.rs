//! What a machine can do at most, measured on the spot: the two roofs of the roofline (Williams, Waterman, Patterson, 2009).
//! A piece of work takes at least `max(FLOPs / flops_per_second, bytes / bytes_per_second)`.
//!
//! This is the one place that measured shares of a peak come from: [`Backend::limits`](crate::Backend::limits) measures,
//! `patchgpt bench` and the benches divide by it. On the CPU both are measured with the device's own threads (`cpu/peak.rs`).

/// The two ceilings of a device for one dtype.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Multiply-adds at the fastest rate seen, a multiply-add counted as two operations.
    pub flops_per_second: f64,
    /// Bytes read plus bytes written by a copy much larger than the caches, at the fastest rate seen.
    pub bytes_per_second: f64,
    /// Bytes of that copy's source and target together.
    pub copied_bytes: usize,
}

impl Limits {
    /// The least time that work of so many operations and bytes (each byte moved once) takes, in seconds.
    pub fn floor(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops_per_second).max(bytes / self.bytes_per_second)
    }
}
