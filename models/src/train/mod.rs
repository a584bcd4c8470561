//! Training in stages: what each stage reads and costs, and how a run is cut into them.

pub mod metrics;
pub mod stages;
