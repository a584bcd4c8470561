//! Files from outside, mutated: readers refuse them or read them, and never panic. A few hundred mutations of every kind of file on each
//! run; `PATCHGPT_FUZZ_SECONDS=600 cargo test -p patchgpt-tests --test untrusted -- --nocapture` goes on for that long per kind.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use patchgpt_tests::untrusted::{Mutator, Target, target};

/// Mutations of each seed on an ordinary run.
const MUTATIONS: u64 = 400;

/// Fails if the reader panics; an input with which it hangs or takes all memory is in the same place when the process is killed.
fn survives(target: &Target, input: &[u8], what: &str) {
    let path = std::env::temp_dir().join(format!("patchgpt-{}-{}", target.name, std::process::id()));
    std::fs::write(&path, input).expect("a place for the input");
    let read = catch_unwind(AssertUnwindSafe(|| (target.read)(input)));
    if read.is_ok() {
        std::fs::remove_file(&path).expect("the input is there");
    } else {
        panic!("{}: {what} makes the reader panic; the input is in {}", target.name, path.display());
    }
}

fn run(name: &str) {
    let target = target(name);
    let seeds = (target.seeds)();
    for (i, seed) in seeds.iter().enumerate() {
        survives(target, seed, &format!("valid file {i}"));
        for length in 0..seed.len().min(300) {
            survives(target, &seed[..length], &format!("valid file {i} cut to {length}"));
        }
    }
    let seconds = std::env::var("PATCHGPT_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).map(Duration::from_secs);
    let (begun, mut executed) = (Instant::now(), 0);
    while seconds.map_or(executed < MUTATIONS * seeds.len() as u64, |limit| begun.elapsed() < limit) {
        let i = (executed % seeds.len() as u64) as usize;
        let input = Mutator::new(executed + 1).mutate(&seeds[i]);
        survives(target, &input, &format!("mutation {executed} of valid file {i}"));
        executed += 1;
    }
    println!("{name}: {executed} mutations");
}

#[test]
fn checkpoints() {
    run("checkpoint");
}

#[test]
fn counters_of_checkpoints() {
    run("counters");
}

#[test]
fn weights() {
    run("weights");
}

#[test]
fn indices_of_shards() {
    run("index");
}

#[test]
fn token_files() {
    run("token_file");
}

#[test]
fn tokenizers() {
    run("tokenizer");
}

#[test]
fn configurations() {
    run("config");
}

/// The harness must notice a panic, and mutations must differ from what they come from.
#[test]
fn a_panic_is_noticed() {
    let panics =
        Target { name: "panics", read: |bytes| assert_eq!(bytes, b"valid"), seeds: || vec![b"valid".to_vec()] };
    survives(&panics, b"valid", "nothing");
    assert!(catch_unwind(|| survives(&panics, b"other", "a change")).is_err());
    let seed = (target("weights").seeds)().swap_remove(0);
    let changed = (0..200).filter(|&n| Mutator::new(n).mutate(&seed) != seed).count();
    assert!(changed > 180, "{changed}");
    assert_eq!(Mutator::new(7).mutate(&seed), Mutator::new(7).mutate(&seed));
}
