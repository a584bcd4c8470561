//! The timed search among cuBLASLt's algorithms, and its choices.

use std::collections::BTreeMap;

use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys as driver;
use patchgpt_tensor::Result;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{BlasLt, Epilogue, Plan, check, empty_result};
use crate::blas::Gemm;
use crate::device::Cuda;
use crate::error::backend;
use crate::memory::Context;
use crate::probe;

/// How many algorithms are timed for a problem.
const CANDIDATES: usize = 16;
/// Calls between two events, and how often that is timed.
const CALLS: usize = 3;
const ROUNDS: usize = 3;

/// The algorithms of cuBLASLt that a search has chosen. They decide how sums are cut, so bits: whoever keeps them and gives them to
/// [`Cuda::with_gemm_search`] gets the same results again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GemmChoices {
    /// The library's version, such as 130100: what an algorithm means is known to this version alone.
    pub cublaslt: usize,
    /// The card: its name and number of multiprocessors.
    pub device: String,
    /// By problem, in words: the 64 bytes of the algorithm in hexadecimal digits.
    pub algorithms: BTreeMap<String, String>,
}

impl GemmChoices {
    /// Refuses to be used in the place of `here`.
    pub(super) fn check(&self, here: &GemmChoices) -> std::result::Result<(), String> {
        if (self.cublaslt, &self.device) == (here.cublaslt, &here.device) {
            return Ok(());
        }
        let on = |choices: &GemmChoices| {
            let version = choices.cublaslt;
            format!("cuBLASLt {}.{}.{} on {}", version / 10000, version % 10000 / 100, version % 100, choices.device)
        };
        Err(format!("the algorithms of its products were chosen for {}, and here is {}", on(self), on(here)))
    }

    /// What was chosen for a problem.
    pub(super) fn of(&self, problem: &Problem) -> Option<&str> {
        self.algorithms.get(&problem.to_string()).map(String::as_str)
    }

    pub(super) fn keep(&mut self, problem: &Problem, algorithm: &lt::cublasLtMatmulAlgo_t) {
        self.algorithms.insert(problem.to_string(), digits(algorithm));
    }
}

fn digits(algorithm: &lt::cublasLtMatmulAlgo_t) -> String {
    algorithm.data.iter().map(|word| format!("{word:016x}")).collect()
}

fn algorithm(digits: &str) -> Option<lt::cublasLtMatmulAlgo_t> {
    let mut data = [0; 8];
    if digits.len() != 16 * data.len() || !digits.is_ascii() {
        return None;
    }
    for (word, digits) in data.iter_mut().zip(digits.as_bytes().chunks(16)) {
        *word = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(lt::cublasLtMatmulAlgo_t { data })
}

impl BlasLt {
    /// The choices of a search that has just begun on a device.
    pub(crate) fn no_choices(cuda: &Cuda) -> Result<GemmChoices> {
        let device = format!("{} ({} multiprocessors)", cuda.info().name, cuda.multiprocessors());
        Ok(GemmChoices { cublaslt: probe::cublas_lt_version()?, device, algorithms: BTreeMap::new() })
    }

    /// The algorithm that was chosen before, once the library has agreed to it.
    pub(super) fn known(&self, plan: &Plan, problem: &Problem, known: &str) -> Result<lt::cublasLtMatmulAlgo_t> {
        let refused = |why: String| {
            backend(
                self.context.name(),
                format!("the algorithm that was chosen for the product {problem} cannot be used: {why}"),
            )
        };
        let algorithm =
            algorithm(known).ok_or_else(|| refused(format!("128 hexadecimal digits expected, got `{known}`")))?;
        let [a, b, c] = plan.layouts.each_ref().map(|layout| layout.0);
        let mut result = empty_result();
        // SAFETY: all handles are alive and the pointers valid.
        let status =
            unsafe { lt::cublasLtMatmulAlgoCheck(self.handle, plan.descriptor.0, a, b, c, c, &algorithm, &mut result) };
        check(&self.context, status, || "the library's check".into()).map_err(|error| refused(error.to_string()))?;
        Ok(algorithm)
    }

    /// The fastest of the algorithms that the library offers, on the inputs of `g`, which are only read; outputs go to memory that is made for
    /// this. `None` if it offers none.
    pub(super) fn search(
        &self,
        plan: &mut Plan,
        problem: &Problem,
        g: &Gemm,
        epilogue: &Epilogue,
    ) -> Result<Option<lt::cublasLtMatmulAlgo_t>> {
        let context = &*self.context;
        context.refuse_in_capture(|| format!("the search for an algorithm for the product {problem}"))?;
        let candidates = self.heuristic(plan, problem, CANDIDATES)?;
        if candidates.len() < 2 {
            return Ok(candidates.into_iter().next());
        }
        let scratch = self.context.allocate_lasting(bytes(g, g.c.leading))?;
        let (sum, epilogue) = match *epilogue {
            Epilogue::Gelu { bias, leading, .. } => {
                let sum = self.context.allocate_lasting(bytes(g, leading))?;
                let address = sum.address();
                (Some(sum), Epilogue::Gelu { bias, sum: address, leading })
            }
            other => (None, other),
        };
        plan.descriptor.point(context, &epilogue)?;
        let events = [Event::new(context)?, Event::new(context)?];
        let mut best: Option<(f32, lt::cublasLtMatmulAlgo_t)> = None;
        for candidate in candidates {
            plan.algorithm = candidate;
            let run = |calls: usize| -> Result<()> {
                for _ in 0..calls {
                    let status = self.enqueue(plan, g, 0.0, scratch.address());
                    check(context, status, || format!("timing an algorithm for the product {problem}"))?;
                }
                Ok(())
            };
            run(1)?; // what the library loads at its first call
            for _ in 0..ROUNDS {
                events[0].record(context)?;
                run(CALLS)?;
                events[1].record(context)?;
                let time = events[1].since(context, &events[0])?;
                if best.is_none_or(|(shortest, _)| time < shortest) {
                    best = Some((time, candidate));
                }
            }
        }
        drop(sum);
        Ok(best.map(|(_, fastest)| fastest))
    }
}

/// Bytes from the first element of c to the end of the batch's last, with so many elements from one column to the next.
fn bytes(g: &Gemm, leading: usize) -> usize {
    ((g.batch - 1) * g.c.stride + (g.n - 1) * leading + g.m) * g.c.dtype.size()
}

/// A point in the stream whose time is told.
struct Event(driver::CUevent);

impl Event {
    fn new(context: &Context) -> Result<Event> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is valid and the context current.
        let made = unsafe { driver::cuEventCreate(&mut raw, driver::CUevent_flags::CU_EVENT_DEFAULT as u32) };
        context.check(made, || "making an event".into())?;
        Ok(Event(raw))
    }

    fn record(&self, context: &Context) -> Result<()> {
        // SAFETY: event and stream are alive.
        let recorded = unsafe { driver::cuEventRecord(self.0, context.stream()) };
        context.check(recorded, || "recording an event".into())
    }

    /// Milliseconds since another event, once the stream has come to this one.
    fn since(&self, context: &Context, begun: &Event) -> Result<f32> {
        // SAFETY: the event is alive.
        let waited = unsafe { driver::cuEventSynchronize(self.0) };
        context.check(waited, || "waiting for an event".into())?;
        // cudarc's is the second version, which drivers before 570 lack.
        type Elapsed = unsafe extern "C" fn(*mut f32, driver::CUevent, driver::CUevent) -> driver::CUresult;
        // SAFETY: the driver's library is loaded, and this is the function's type by its documentation.
        let elapsed = unsafe { driver::culib().get::<Elapsed>(b"cuEventElapsedTime") }
            .map_err(|error| backend(context.name(), format!("libcuda has no cuEventElapsedTime: {error}")))?;
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive and the pointer is valid.
        let told = unsafe { elapsed(&mut milliseconds, begun.0, self.0) };
        context.check(told, || "asking for the time between two events".into())?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        unsafe { driver::cuEventDestroy_v2(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithm_is_128_digits() {
        let there = lt::cublasLtMatmulAlgo_t { data: [1, u64::MAX, 3, 0, 0xab << 56, 6, 7, 8] };
        let text = digits(&there);
        assert_eq!((text.len(), algorithm(&text)), (128, Some(there)));
        for wrong in ["", &text[1..], &format!("{}g", &text[1..]), &format!("{}ß", &text[2..])] {
            assert_eq!(algorithm(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn choices_are_for_one_version_and_one_card() {
        let here =
            GemmChoices { cublaslt: 130102, device: "card (132 multiprocessors)".into(), algorithms: BTreeMap::new() };
        assert_eq!(here.check(&here), Ok(()));
        let other = GemmChoices { cublaslt: 130200, ..here.clone() };
        let message = other.check(&here).unwrap_err();
        assert!(
            message.contains("chosen for cuBLASLt 13.2.0 on card") && message.contains("here is cuBLASLt 13.1.2"),
            "{message}"
        );
        let other = GemmChoices { device: "card (114 multiprocessors)".into(), ..here.clone() };
        assert!(other.check(&here).unwrap_err().contains("114 multiprocessors"));
    }
}
