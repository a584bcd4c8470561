//! Training in stages: how a run is cut into them, the loop, and what it leaves behind. [`run()`] is the whole of it; an
//! [`Observer`] follows it.

mod batches;
pub mod checkpoint;
mod choices;
mod folder;
pub mod metrics;
mod observer;
mod outcome;
mod prepare;
mod record;
mod run;
mod sample;
pub mod stages;
mod step;

#[cfg(feature = "program")]
pub(crate) use batches::{StepBatches, stage_shape};
#[cfg(feature = "program")]
pub(crate) use folder::{PATCH_ARM, TOKEN_ARM};
pub use folder::{RunFolder, model_folder};
pub use observer::{Observer, Setup};
pub use outcome::Outcome;
#[cfg(feature = "program")]
pub(crate) use prepare::initial_model;
pub use prepare::{dtype, load_text, make_dataset, open_device};
pub use run::{Start, run};
pub use sample::sample;
#[cfg(feature = "program")]
pub(crate) use step::held_by;
pub use step::{Step, Stepper};
