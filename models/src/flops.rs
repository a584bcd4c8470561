//! Training FLOPs.
