//! Training configuration.
