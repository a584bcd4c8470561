//! The machine a figure was measured on, and the memory of this process. Linux tells; elsewhere fields are absent.

use std::time::Instant;

use serde::Serialize;

/// What a reader of a figure needs to know of the machine.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Name of the processor as it calls itself.
    pub processor: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Operating system and instruction set.
    pub system: String,
}

impl Machine {
    /// This machine.
    pub fn here() -> Machine {
        let processors = std::fs::read_to_string("/proc/cpuinfo").ok();
        let model = |text: &String| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Machine {
            processor: processors.as_ref().and_then(model),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            memory_bytes: kibibytes("/proc/meminfo", "MemTotal:"),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// What [`peak_memory`] is, to be printed beside it.
pub const PEAK_MEMORY: &str = "VmHWM: the most physical memory that the process has held, code and data of every kind";

/// The most physical memory that this process has held so far, in bytes (VmHWM); `None` where the system does not tell.
pub fn peak_memory() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

/// Processor time so far, to tell how busy other processes are while something is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy {
    at: Instant,
    /// Seconds that all processes have computed, and those of this one.
    all: f64,
    own: f64,
}

/// Ticks in a second of Linux's counters of processor time.
const TICKS: f64 = 100.0;

impl Busy {
    /// The counters now; `None` where the system has none.
    pub(super) fn now() -> Option<Busy> {
        let sum = |text: &str, fields: &[usize]| -> Option<f64> {
            let values: Vec<&str> = text.split_whitespace().collect();
            fields.iter().map(|&field| values.get(field)?.parse::<f64>().ok()).sum::<Option<f64>>()
        };
        let all = std::fs::read_to_string("/proc/stat").ok()?;
        let own = std::fs::read_to_string("/proc/self/stat").ok()?;
        // user, nice, system, irq and softirq of all processors; utime and stime after the name in parentheses.
        let all = sum(all.lines().next()?, &[1, 2, 3, 6, 7])?;
        let own = sum(own.rsplit_once(')')?.1, &[11, 12])?;
        Some(Busy { at: Instant::now(), all: all / TICKS, own: own / TICKS })
    }

    /// Cores that other processes have kept busy since then, on average.
    pub(super) fn others_since(self) -> Option<f64> {
        let now = Busy::now()?;
        let others = (now.all - self.all) - (now.own - self.own);
        Some((others / (now.at - self.at).as_secs_f64()).max(0.0))
    }
}

/// The value of a line `name   123 kB`, in bytes.
fn kibibytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_grows_with_what_is_touched() {
        let before = peak_memory().unwrap();
        let touched = vec![1u8; 64 << 20];
        assert!(peak_memory().unwrap() >= before.max(64 << 20), "{}", touched.len());
        assert!(Busy::now().and_then(Busy::others_since).is_some_and(|cores| cores >= 0.0 && cores.is_finite()));
        let machine = Machine::here();
        assert!(machine.cores >= 1 && machine.memory_bytes.unwrap() > 64 << 20);
    }
}
