//! A team of threads for many short parallel regions: `run(tasks, f)` calls `f(0..tasks)`, each once.
//! The calling thread works too; the others spin for a moment after a region, then sleep, so that the hundreds of
//! regions of a training step cost about a microsecond each. Which thread takes a task is left to chance:
//! results are the same for any number of threads because work is cut into tasks by shape alone ([`blocks`]).

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread without work looks for more before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// `Shared::state`: the number of the region in the high bits, then whether it may be joined, then how many
/// threads of the team are inside.
const JOINED: u64 = (1 << 16) - 1;
const OPEN: u64 = 1 << 16;
const REGION: u64 = 1 << 17;

/// One region: lives on the stack of [`Pool::run`], which returns only when no thread is inside it.
struct Region<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Region<'_> {
    /// Takes tasks until none is left. A panic is kept for the caller and ends the region early.
    fn work(&self) {
        let taken = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= self.tasks {
                    break;
                }
                (self.task)(task);
            }
        }));
        if let Err(payload) = taken {
            self.next.store(self.tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }
}

struct Shared {
    state: AtomicU64,
    region: UnsafeCell<*const Region<'static>>,
    sleeping: Vec<AtomicBool>,
    stop: AtomicBool,
    spin: Duration,
}

// SAFETY: `region` is written only by the thread that holds `Pool::busy`, while the state is neither open nor
// joined, and read only by a thread that has joined; the state's release and acquire order the two.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Joins the open region numbered above `seen`, works, leaves. Returns the number of the last region seen.
    fn join(&self, seen: u64) -> u64 {
        let state = self.state.load(Ordering::SeqCst);
        let number = state / REGION;
        if state & OPEN == 0 || number == seen {
            return seen;
        }
        if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return seen;
        }
        // SAFETY: joined, so the region's owner waits for this thread before the region goes out of scope.
        unsafe { (**self.region.get()).work() };
        self.state.fetch_sub(1, Ordering::Release);
        number
    }

    /// The life of thread `index` of the team.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            let idle = Instant::now();
            let mut turns = 0u32;
            loop {
                let last = seen;
                seen = self.join(seen);
                if seen != last {
                    break;
                }
                if self.stop.load(Ordering::SeqCst) {
                    return;
                }
                turns = turns.wrapping_add(1);
                if turns.is_multiple_of(64) && idle.elapsed() >= self.spin {
                    self.sleep(index, seen);
                }
                std::hint::spin_loop();
            }
        }
    }

    /// Parks the thread unless a region opened meanwhile. The flag is raised before the state is read and the
    /// owner reads flags after it opens a region, both sequentially consistent, so no wake-up is lost.
    fn sleep(&self, index: usize, seen: u64) {
        self.sleeping[index].store(true, Ordering::SeqCst);
        while self.sleeping[index].load(Ordering::SeqCst) && !self.stop.load(Ordering::SeqCst) {
            let state = self.state.load(Ordering::SeqCst);
            if state & OPEN != 0 && state / REGION != seen {
                break;
            }
            std::thread::park();
        }
        self.sleeping[index].store(false, Ordering::SeqCst);
    }
}

/// A team of threads; the thread that calls [`Pool::run`] is one of them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    team: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
    busy: AtomicBool,
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Pool::run`] included. An error if `threads` is 0 or above
    /// 1024, or if the system refuses a thread.
    pub(crate) fn new(threads: usize) -> Result<Pool, String> {
        if threads == 0 || threads > 1024 {
            return Err(format!("{threads} threads asked for; expected 1 to 1024"));
        }
        // With more threads than cores, a thread that spins takes the core of one that works.
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let spin = if threads <= cores { SPIN } else { Duration::ZERO };
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            region: UnsafeCell::new(std::ptr::null()),
            sleeping: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            spin,
        });
        let mut pool = Pool { shared, team: Vec::new(), handles: Vec::new(), busy: AtomicBool::new(false) };
        for index in 0..threads - 1 {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new()
                .name(format!("patchgpt-cpu-{}", index + 1))
                .spawn(move || shared.serve(index))
                .map_err(|error| {
                    format!("could not start thread {} of {threads}: {error}; ask for fewer", index + 2)
                })?;
            pool.team.push(handle.thread().clone());
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// The number of threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.team.len() + 1
    }

    /// Calls `task(i)` once for each i in 0..`tasks` and returns when all are done. Runs on the calling thread
    /// alone when there is one task or one thread, or when the pool is at work already (called from a task, or
    /// from a second thread). A panic in a task stops the others early and continues in the caller.
    pub(crate) fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.team.is_empty() || self.busy.swap(true, Ordering::Acquire) {
            (0..tasks).for_each(task);
            return;
        }
        let region = Region { task: &task, tasks, next: AtomicUsize::new(0), panic: Mutex::new(None) };
        self.open(&region);
        region.work();
        self.close();
        self.busy.store(false, Ordering::Release);
        if let Some(payload) = region.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
    }

    /// Publishes the region and wakes as many sleeping threads as it has tasks for.
    fn open(&self, region: &Region<'_>) {
        let shared = &*self.shared;
        // SAFETY: `busy` is held and the last region was closed with nobody inside, so nobody reads the cell. The
        // lifetime is restored in spirit by `close`, which waits for all who joined before `region` is dropped.
        unsafe { *shared.region.get() = std::ptr::from_ref(region).cast::<Region<'static>>() };
        let number = shared.state.load(Ordering::Relaxed) / REGION + 1;
        shared.state.store(number * REGION + OPEN, Ordering::SeqCst);
        let sleepers = shared.sleeping.iter().zip(&self.team).take(region.tasks - 1);
        for (_, thread) in sleepers.filter(|(sleeping, _)| sleeping.swap(false, Ordering::SeqCst)) {
            thread.unpark();
        }
    }

    /// Closes the region to joiners and waits until those inside have left.
    fn close(&self) {
        let state = &self.shared.state;
        state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut turns = 0u32;
        while state.load(Ordering::Acquire) & JOINED != 0 {
            turns += 1;
            if turns < 10_000 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
                turns = 9_000;
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (handle, thread) in self.handles.drain(..).zip(&self.team) {
            thread.unpark();
            // A thread of the team ends without a panic: `Region::work` keeps those of tasks.
            let _ = handle.join();
        }
    }
}

/// Work of one block, in elements touched: some 10 microseconds.
const GRAIN: usize = 16 * 1024;
/// Most blocks a region is cut into.
const MAX_BLOCKS: usize = 256;

/// Cuts `rows` rows that cost `row_cost` each (elements touched) into (number of blocks, rows per block). The last
/// block may be shorter. Depends on the shape alone.
pub(crate) fn blocks(rows: usize, row_cost: usize) -> (usize, usize) {
    if rows == 0 {
        return (0, 1);
    }
    let per_block = GRAIN.div_ceil(row_cost.max(1)).max(rows.div_ceil(MAX_BLOCKS)).min(rows);
    (rows.div_ceil(per_block), per_block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).expect("threads");
            assert_eq!(pool.threads(), threads);
            for tasks in (0..50).chain([1000, 10_000]) {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn all_threads_work_together() {
        for threads in [2, 3] {
            let pool = Pool::new(threads).expect("threads");
            for region in 0..10 {
                // Each task waits for the others: one thread alone would wait until the end.
                let (begun, alone) = (AtomicUsize::new(0), AtomicBool::new(false));
                let end = Instant::now() + Duration::from_secs(60);
                pool.run(threads, |_| {
                    begun.fetch_add(1, Ordering::Relaxed);
                    while begun.load(Ordering::Relaxed) < threads && !alone.load(Ordering::Relaxed) {
                        alone.fetch_or(Instant::now() > end, Ordering::Relaxed);
                        std::thread::yield_now();
                    }
                });
                assert!(!alone.into_inner(), "region {region} is not shared by {threads} threads");
            }
        }
    }

    #[test]
    fn regions_follow_each_other_closely_and_after_sleep() {
        let pool = Pool::new(3).expect("threads");
        let total = AtomicUsize::new(0);
        for round in 0..20_000 {
            pool.run(4, |task| {
                total.fetch_add(task, Ordering::Relaxed);
            });
            if round % 1000 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(total.into_inner(), 20_000 * 6);
    }

    #[test]
    fn a_second_caller_and_a_task_may_call_run() {
        let pool = Pool::new(2).expect("threads");
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(3, |_| {
                            pool.run(5, |_| {
                                total.fetch_add(1, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 500 * 15);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).expect("threads");
        for bad in [0, 7, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, |task| assert!(task != bad, "task {task} fails"));
            }));
            let payload = result.expect_err("the panic is passed on");
            let message = payload.downcast_ref::<String>().expect("a message");
            assert!(message.contains(&format!("task {bad} fails")), "{message}");
            let done = AtomicUsize::new(0);
            pool.run(10, |_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 10);
        }
    }

    #[test]
    fn a_dropped_pool_ends_its_threads() {
        let pool = Pool::new(3).expect("threads");
        pool.run(5, |_| {});
        let shared = Arc::downgrade(&pool.shared);
        drop(pool);
        assert_eq!(shared.strong_count(), 0);
    }

    #[test]
    fn a_pool_needs_threads() {
        assert!(Pool::new(0).err().is_some_and(|message| message.contains('0')));
        assert!(Pool::new(2000).is_err());
    }

    #[test]
    fn blocks_cover_the_rows() {
        for rows in [0, 1, 2, 5, 100, 1000, 123_457] {
            for cost in [0, 1, 7, 128, 100_000] {
                let (count, per_block) = blocks(rows, cost);
                assert!(per_block >= 1 && count <= MAX_BLOCKS);
                assert!(count * per_block >= rows && count.saturating_sub(1) * per_block < rows.max(1));
            }
        }
        assert_eq!(blocks(10, 1).0, 1);
        assert_eq!(blocks(64, 1 << 20).0, 64);
    }
}
