//! Counter-based random numbers.

use super::writable;
use crate::backend::{Distribution, floating};
use crate::{Error, Result, Tensor};

impl Tensor {
    /// Fills the contiguous tensor with random numbers: element i depends on `seed` and `offset + i` only.
    ///
    /// # Errors
    /// A dtype other than f32 and f64; a tensor that is not contiguous; a range or deviation that is not finite.
    pub fn random_(&self, distribution: Distribution, seed: u64, offset: u64) -> Result<()> {
        floating("random", self.dtype())?;
        writable("random", self)?;
        if !self.is_contiguous() {
            return Err(Error::shape("random", format!("a contiguous tensor expected, got {:?}", self.layout())));
        }
        let sound = match distribution {
            Distribution::Uniform { low, high } => low.is_finite() && high.is_finite() && low < high,
            Distribution::Normal { mean, std } => mean.is_finite() && std.is_finite() && std >= 0.0,
        };
        if !sound {
            return Err(Error::value(
                "random",
                format!("{distribution:?} is no distribution: finite bounds with low < high, or std >= 0"),
            ));
        }
        self.device().backend().random(self, distribution, seed, offset)?;
        self.mark_written();
        Ok(())
    }
}
