//! The order of the data: what stages claim, what an epoch covers, how documents bound windows.

use std::collections::HashSet;

use super::{Sampler, StageShape, Window, WindowShape};

fn stage(positions: usize, patches: [usize; 2], batch: usize, windows: u64) -> StageShape {
    StageShape { window: WindowShape { positions, input_patch: patches[0], target_patch: patches[1] }, batch, windows }
}

fn all(sampler: &mut Sampler, stage: usize, windows: u64) -> Vec<Window> {
    (0..windows).map(|index| sampler.window(stage, index).unwrap()).collect()
}

/// Tokens that the windows advance over, per epoch, each once.
fn covered(windows: &[Window], advance: u64) -> HashSet<(u64, u64)> {
    let mut tokens = HashSet::new();
    for window in windows {
        for token in window.start..window.start + advance {
            assert!(tokens.insert((window.epoch, token)), "token {token} twice in epoch {}", window.epoch);
        }
    }
    tokens
}

#[test]
fn stages_read_disjoint_tokens_within_an_epoch() {
    // Chunks of 32 tokens; the patch stage takes 11 of 31, the token stage the rest of the epoch and on.
    let stages = [stage(8, [4, 4], 2, 11), stage(8, [1, 1], 2, 300)];
    let mut sampler = Sampler::new(1000, None, &stages, 5).unwrap();
    let patch = covered(&all(&mut sampler, 0, 11), 32);
    let windows = all(&mut sampler, 1, 300);
    let token = covered(&windows, 8);
    assert!(patch.is_disjoint(&token));
    assert_eq!(windows[0].epoch, 0);
    assert_eq!(windows[299].epoch, 2);
    let first_epoch = token.iter().filter(|(epoch, _)| *epoch == 0).count();
    assert_eq!(patch.len() + first_epoch, 31 * 32);
}

#[test]
fn a_partly_read_chunk_is_not_read_on_by_the_next_stage() {
    // The first stage needs 5 windows of 4 tokens and claims two chunks of 16 for them.
    let stages = [stage(4, [1, 1], 1, 5), stage(4, [4, 4], 1, 8)];
    let mut sampler = Sampler::new(10 * 16 + 4, None, &stages, 0).unwrap();
    let chunks = |windows: &[Window]| -> HashSet<u64> { windows.iter().map(|window| window.start / 16).collect() };
    let first = all(&mut sampler, 0, 5);
    let second = all(&mut sampler, 1, 8);
    assert_eq!(chunks(&first).len(), 2);
    assert_eq!(chunks(&second).len(), 8);
    assert!(chunks(&first).is_disjoint(&chunks(&second)));
    assert!(second.iter().all(|window| window.epoch == 0));
}

#[test]
fn an_epoch_reads_every_window_once_and_leaves_room_for_targets() {
    for (tokens, patches) in [(100, [1, 1]), (101, [1, 4]), (103, [4, 1]), (104, [2, 2]), (108, [4, 4])] {
        let shape = stage(5, patches, 1, 1).window;
        let per_epoch = (tokens - patches[1] as u64) / shape.advance() as u64;
        let stages = [StageShape { window: shape, batch: 1, windows: 3 * per_epoch }];
        let mut sampler = Sampler::new(tokens, None, &stages, 9).unwrap();
        assert_eq!(sampler.windows_per_epoch(0), per_epoch);
        let windows = all(&mut sampler, 0, 3 * per_epoch);
        let tokens_read = covered(&windows, shape.advance() as u64);
        assert_eq!(tokens_read.len() as u64, 3 * per_epoch * shape.advance() as u64);
        for (index, window) in windows.iter().enumerate() {
            assert_eq!(window.epoch, index as u64 / per_epoch);
            assert_eq!(window.len, shape.reads());
            assert!(window.start + window.len as u64 <= tokens);
        }
    }
}

#[test]
fn the_last_chunk_leaves_room_for_the_targets() {
    // 64 tokens and no more: four windows of 16 + 1 do not fit, three do.
    let sampler = Sampler::new(64, None, &[stage(16, [1, 1], 1, 1)], 0).unwrap();
    assert_eq!(sampler.windows_per_epoch(0), 3);
    let sampler = Sampler::new(65, None, &[stage(16, [1, 1], 1, 1)], 0).unwrap();
    assert_eq!(sampler.windows_per_epoch(0), 4);
}

#[test]
fn the_seed_decides_the_order_and_any_window_can_be_asked_for_first() {
    let stages = [stage(4, [4, 4], 4, 70), stage(4, [1, 1], 4, 500)];
    let order = |seed| {
        let mut sampler = Sampler::new(1000, None, &stages, seed).unwrap();
        let mut windows = all(&mut sampler, 0, 70);
        windows.extend(all(&mut sampler, 1, 500));
        windows
    };
    let reference = order(1);
    assert_eq!(reference, order(1));
    assert_ne!(reference, order(2));
    // A resumed run asks for a window in the middle first, or for a stage out of turn.
    for (stage, index) in [(1, 499), (0, 69), (1, 0), (0, 0), (1, 250), (0, 35)] {
        let mut sampler = Sampler::new(1000, None, &stages, 1).unwrap();
        let expected = reference[stage * 70 + index];
        assert_eq!(sampler.window(stage, index as u64).unwrap(), expected);
    }
}

#[test]
fn neighbours_do_not_meet_in_a_batch() {
    let mut sampler = Sampler::new(100_000, None, &[stage(10, [1, 1], 16, 9000)], 3).unwrap();
    let windows = all(&mut sampler, 0, 9000);
    let mut adjacent = 0;
    for batch in windows.chunks(16) {
        let starts: HashSet<u64> = batch.iter().map(|window| window.start).collect();
        adjacent += batch.iter().filter(|window| starts.contains(&(window.start + 10))).count();
    }
    // 9000 windows, each with its neighbour among 15 others of 9999: about 13.5 by chance.
    assert!(adjacent < 40, "{adjacent} neighbours");
}

/// A chunk holds four windows of the token stage; they must not follow each other either.
#[test]
fn windows_of_one_chunk_are_spread() {
    let stages = [stage(10, [4, 4], 1, 1), stage(10, [1, 1], 16, 4000)];
    let mut sampler = Sampler::new(100_000, None, &stages, 3).unwrap();
    let windows = all(&mut sampler, 1, 4000);
    let following = windows.windows(2).filter(|pair| pair[0].start + 10 == pair[1].start).count();
    assert!(following < 20, "{following} windows follow their neighbour");
}

/// Three stages of half an epoch: the first and the last claim the first half of two epochs.
#[test]
fn epochs_cut_the_text_into_different_halves() {
    let half = stage(16, [1, 1], 1, 50);
    let mut sampler = Sampler::new(1601, None, &[half, half, half], 3).unwrap();
    let mut starts = |stage| -> HashSet<u64> {
        let windows = all(&mut sampler, stage, 50);
        windows.iter().map(|window| window.start).collect()
    };
    let halves = [starts(0), starts(1), starts(2)];
    assert!(halves[0].is_disjoint(&halves[1]));
    assert!(!halves[0].is_disjoint(&halves[2]) && halves[0] != halves[2]);
}

#[test]
fn epochs_differ_in_their_order() {
    let mut sampler = Sampler::new(1601, None, &[stage(16, [1, 1], 1, 200)], 3).unwrap();
    let windows = all(&mut sampler, 0, 200);
    let starts =
        |range: std::ops::Range<usize>| -> Vec<u64> { windows[range].iter().map(|window| window.start).collect() };
    assert_ne!(starts(0..100), starts(100..200));
}

#[test]
fn respected_documents_are_never_crossed() {
    let starts = [0, 3, 4, 50, 51, 53, 120];
    let tokens = 133;
    for patches in [[1, 1], [4, 4], [4, 1], [1, 4]] {
        let shape = stage(4, patches, 2, 40);
        let mut sampler = Sampler::new(tokens, Some(&starts), &[shape], 7).unwrap();
        let per_epoch = sampler.windows_per_epoch(0);
        let windows = all(&mut sampler, 0, 40);
        let advance = shape.window.advance() as u64;
        // By hand: each document, cut from its start, as long as a window scores something.
        let mut expected = HashSet::new();
        for (index, &start) in starts.iter().enumerate() {
            let end = starts.get(index + 1).copied().unwrap_or(tokens);
            let mut first = start;
            while first + (patches[0] as u64) < end {
                expected.insert((first, (end - first).min(shape.window.reads() as u64) as usize));
                first += advance;
            }
        }
        assert_eq!(per_epoch as usize, expected.len());
        for epoch in 0..40 / per_epoch {
            let part = &windows[(epoch * per_epoch) as usize..((epoch + 1) * per_epoch) as usize];
            let read: HashSet<(u64, usize)> = part.iter().map(|w| (w.start, w.len)).collect();
            assert_eq!(read, expected, "patches {patches:?}");
        }
    }
}

#[test]
fn respecting_stages_stay_disjoint_and_skip_what_is_too_short() {
    // Documents of 3 tokens hold no window of a patch of 4, but three of single tokens less one.
    let mut starts: Vec<u64> = (0..20).map(|i| i * 3).collect();
    starts.push(60);
    let stages = [stage(2, [4, 4], 1, 30), stage(2, [1, 1], 1, 30)];
    let mut sampler = Sampler::new(160, Some(&starts), &stages, 0).unwrap();
    let patch = all(&mut sampler, 0, 30);
    assert!(patch.iter().all(|window| window.start >= 60));
    let token = all(&mut sampler, 1, 30);
    let last = patch.last().unwrap().epoch;
    let patch_tokens: HashSet<u64> =
        patch.iter().filter(|window| window.epoch == last).flat_map(|window| window.start..window.start + 8).collect();
    for window in token.iter().filter(|window| window.epoch == last) {
        assert!(!patch_tokens.contains(&window.start), "{window:?}");
    }
}

#[test]
fn too_little_text_names_numbers_and_remedies() {
    let error = Sampler::new(500, None, &[stage(64, [4, 4], 2, 10)], 0).unwrap_err();
    let message = error.to_string();
    for part in ["500 tokens", "2 sequences of 260", "holds 1 such", "--seq-len", "--batch-size"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(error.exit_code(), 1);
    assert!(Sampler::new(3, None, &[stage(64, [1, 1], 1, 1)], 0).is_err());
    assert!(Sampler::new(100, Some(&[0, 50]), &[stage(64, [60, 60], 1, 1)], 0).is_err());
}

#[test]
fn shapes_and_indices_that_cannot_be_are_errors() {
    for broken in [stage(0, [1, 1], 1, 1), stage(4, [0, 1], 1, 1), stage(4, [1, 0], 1, 1), stage(4, [1, 1], 0, 1)] {
        assert!(Sampler::new(100, None, &[broken], 0).unwrap_err().is_usage());
    }
    let mut sampler = Sampler::new(100, None, &[stage(4, [1, 1], 1, 5)], 0).unwrap();
    assert!(sampler.window(0, 4).is_ok());
    assert!(sampler.window(0, 5).is_err());
    assert!(sampler.window(1, 0).is_err());
}
