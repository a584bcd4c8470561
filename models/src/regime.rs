//! Regimes.
