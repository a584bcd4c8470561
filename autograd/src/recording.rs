//! Whether ops record themselves: a state of the thread.

use std::cell::{Cell, RefCell};
use std::thread::LocalKey;

use crate::function::SavedTensor;

/// What the ops of this thread do.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Recording {
    /// Nodes are made for tracked inputs.
    On,
    /// Nothing is tracked.
    Off,
    /// The first run of a recomputed function: nothing is saved, but outputs still say whether they would be tracked.
    Rehearsal,
}

thread_local! {
    static STATE: Cell<Recording> = const { Cell::new(Recording::On) };
    static REMAKING: Cell<bool> = const { Cell::new(false) };
    static PARAMETERS: RefCell<Vec<SavedTensor>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn state() -> Recording {
    STATE.get()
}

/// Runs `f` in another state.
pub(crate) fn with_state<R>(state: Recording, f: impl FnOnce() -> R) -> R {
    with(&STATE, state, f)
}

/// Whether outputs of cheap ops are made again instead of kept.
pub(crate) fn is_remaking() -> bool {
    REMAKING.get()
}

/// Runs `f` while they are.
pub(crate) fn remaking<R>(f: impl FnOnce() -> R) -> R {
    with(&REMAKING, true, f)
}

/// Runs `f` while `cell` holds `value`, and sets it back, also when a panic unwinds.
fn with<T: Copy + 'static, R>(cell: &'static LocalKey<Cell<T>>, value: T, f: impl FnOnce() -> R) -> R {
    struct Restore<T: Copy + 'static>(&'static LocalKey<Cell<T>>, T);
    impl<T: Copy> Drop for Restore<T> {
        fn drop(&mut self) {
            self.0.set(self.1);
        }
    }
    let _restore = Restore(cell, cell.replace(value));
    f()
}

/// Runs `f` as a rehearsal; also gives the parameters that it read, with their versions.
pub(crate) fn rehearse<R>(f: impl FnOnce() -> R) -> (R, Vec<SavedTensor>) {
    PARAMETERS.take();
    let result = with_state(Recording::Rehearsal, f);
    (result, PARAMETERS.take())
}

/// Notes that a rehearsal reads a parameter.
pub(crate) fn note_parameter(parameter: SavedTensor) {
    PARAMETERS.with_borrow_mut(|list| list.push(parameter));
}

/// Runs `f` without recording: nothing that this thread computes inside is tracked, and nothing is saved for backward.
///
/// ```
/// use patchgpt_autograd::{Var, is_recording, no_grad};
/// use patchgpt_tensor::{DType, Device, Tensor};
/// # fn main() -> patchgpt_autograd::Result<()> {
/// let w = Var::parameter(Tensor::scalar(2.0, DType::F32, &Device::cpu()?)?);
/// assert!(is_recording() && w.square()?.is_tracked());
/// assert!(!no_grad(|| w.square())?.is_tracked());
/// # Ok(()) }
/// ```
pub fn no_grad<R>(f: impl FnOnce() -> R) -> R {
    with_state(Recording::Off, f)
}

/// Whether ops of this thread on tracked inputs give tracked outputs, that is, whether it is outside of [`no_grad`].
pub fn is_recording() -> bool {
    state() != Recording::Off
}
