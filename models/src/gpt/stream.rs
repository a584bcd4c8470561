//! The residual stream of a transformer, and the norms that read it. What a branch adds to the stream is held back until the next norm, which adds
//! it on the way: one pass over memory instead of two, with the same bits.

use patchgpt_autograd::{Result, Var};

/// A norm over the width: RMSNorm or LayerNorm.
pub(super) enum Norm {
    Rms { weight: Var, eps: f64 },
    Layer { weight: Var, bias: Var, eps: f64 },
}

/// x [B, T, C], and what is still to be added to it.
pub(super) struct Stream {
    x: Var,
    branch: Option<Var>,
}

impl Stream {
    pub(super) fn new(x: Var) -> Stream {
        Stream { x, branch: None }
    }

    /// `x + branch`, not yet added.
    pub(super) fn with(x: Var, branch: Var) -> Stream {
        Stream { x, branch: Some(branch) }
    }

    /// The stream with its branch added, and that normalised.
    pub(super) fn normalised(self, norm: &Norm) -> Result<(Var, Var)> {
        let Stream { x, branch } = self;
        match (norm, branch) {
            (Norm::Rms { weight, eps }, Some(branch)) => x.add_rms_norm(&branch, weight, *eps),
            (Norm::Layer { weight, bias, eps }, Some(branch)) => x.add_layer_norm(&branch, weight, bias, *eps),
            (Norm::Rms { weight, eps }, None) => x.rms_norm(weight, *eps).map(|normed| (x, normed)),
            (Norm::Layer { weight, bias, eps }, None) => x.layer_norm(weight, bias, *eps).map(|normed| (x, normed)),
        }
    }

    /// The stream with its branch added.
    pub(super) fn joined(self) -> Result<Var> {
        match self.branch {
            Some(branch) => self.x.add(&branch),
            None => Ok(self.x),
        }
    }

    /// Whether a gradient will flow through the stream.
    pub(super) fn is_tracked(&self) -> bool {
        self.x.is_tracked() || self.branch.as_ref().is_some_and(Var::is_tracked)
    }
}
