//! Batches against the formulas they come from: x[i*Ki + j] in, x[(i+1)*Ki + k] out; entropies by logarithms of counts.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use patchgpt_tensor::IGNORE_INDEX;

use super::{
    Batch, EvaluationSet, InvertedIndex, Loader, Sampler, SplitMix64, StageBatches, StageShape, TokenFile,
    TokenFileWriter, Tokenizer, Window, WindowShape,
};

fn random_ids(count: usize, vocabulary: u64) -> Vec<i32> {
    let mut generator = SplitMix64::from_key(&[count as u64, vocabulary]);
    (0..count).map(|_| generator.below(vocabulary) as i32).collect()
}

fn token_file(folder: &Path, ids: &[i32], vocabulary: usize) -> Arc<TokenFile> {
    let path = folder.join("ids.tokens");
    let mut writer = TokenFileWriter::create(&path, vocabulary, [0; 32]).unwrap();
    writer.push_document(ids).unwrap();
    Arc::new(writer.finish().unwrap())
}

fn whole(start: u64, shape: WindowShape) -> Window {
    Window { start, len: shape.reads(), epoch: 0 }
}

const PATCHES: [[usize; 2]; 7] = [[1, 1], [4, 4], [4, 1], [1, 4], [3, 2], [2, 5], [7, 7]];

fn shape(positions: usize, [input_patch, target_patch]: [usize; 2]) -> WindowShape {
    WindowShape { positions, input_patch, target_patch }
}

#[test]
fn inputs_and_targets_follow_the_formula() {
    let folder = tempfile::tempdir().unwrap();
    let x = random_ids(500, 50);
    let file = token_file(folder.path(), &x, 50);
    for patches in PATCHES {
        let shape = shape(5, patches);
        let [input_patch, target_patch] = patches;
        let windows = [whole(0, shape), whole(100, shape), whole(37, shape)];
        let batch = Batch::read(&file, &windows, shape, &[], 64).unwrap();
        assert_eq!(batch.inputs.len(), 3 * 5 * input_patch);
        assert_eq!(batch.targets.len(), 3 * 5 * target_patch);
        for (row, window) in windows.iter().enumerate() {
            for i in 0..5 {
                for j in 0..input_patch {
                    let expected = x[window.start as usize + i * input_patch + j];
                    assert_eq!(batch.inputs[(row * 5 + i) * input_patch + j], expected);
                }
                for k in 0..target_patch {
                    let expected = x[window.start as usize + (i + 1) * input_patch + k];
                    assert_eq!(batch.targets[(row * 5 + i) * target_patch + k], expected);
                }
            }
        }
        assert_eq!(batch.valid_targets, batch.targets.len());
        assert_eq!(batch.valid_weight, batch.targets.len() as f64);
        assert_eq!((batch.tokens(), batch.positions()), (15 * input_patch, 15));
    }
}

#[test]
fn a_partial_window_is_padded() {
    let folder = tempfile::tempdir().unwrap();
    let x = random_ids(200, 50);
    let file = token_file(folder.path(), &x, 50);
    for patches in PATCHES {
        let shape = shape(4, patches);
        let [input_patch, target_patch] = patches;
        for len in input_patch + 1..shape.reads() {
            let window = Window { start: 9, len, epoch: 0 };
            let batch = Batch::read(&file, &[window], shape, &[], 50).unwrap();
            let mut valid = 0;
            for (index, &id) in batch.inputs.iter().enumerate() {
                assert_eq!(id, if index < len { x[9 + index] } else { 0 });
            }
            for (index, &id) in batch.targets.iter().enumerate() {
                let (i, k) = (index / target_patch, index % target_patch);
                let place = (i + 1) * input_patch + k;
                valid += usize::from(place < len);
                assert_eq!(id, if place < len { x[9 + place] } else { IGNORE_INDEX });
            }
            assert!(valid > 0);
            assert_eq!(batch.valid_targets, valid);
        }
    }
}

#[test]
fn the_inverted_index_is_a_stable_sort_by_id() {
    for (count, rows) in [(0, 3), (1, 1), (257, 10), (1000, 1000), (64, 4096)] {
        let ids = random_ids(count, rows.min(900));
        let index = InvertedIndex::new(&ids, rows as usize).unwrap();
        assert_eq!(index.offsets.len(), rows as usize + 1);
        for row in 0..rows as usize {
            let naive: Vec<i32> = (0..count as i32).filter(|&position| ids[position as usize] == row as i32).collect();
            let range = index.offsets[row] as usize..index.offsets[row + 1] as usize;
            assert_eq!(index.order[range], naive);
        }
    }
    for wrong in [-1, IGNORE_INDEX, 5] {
        let message = InvertedIndex::new(&[0, wrong], 5).unwrap_err().to_string();
        assert!(message.contains(&wrong.to_string()), "{message}");
    }
}

#[test]
fn the_batch_carries_the_index_of_its_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let file = token_file(folder.path(), &random_ids(100, 50), 50);
    let shape = shape(5, [3, 3]);
    let windows = [whole(0, shape), whole(40, shape)];
    let batch = Batch::read(&file, &windows, shape, &[], 64).unwrap();
    assert_eq!(batch.index, InvertedIndex::new(&batch.inputs, 64).unwrap());
    assert!(Batch::read(&file, &windows, shape, &[], 10).is_err());
}

/// One row at a time: the entropy of its counts, from the definition.
#[test]
fn the_bag_entropy_is_the_entropy_of_the_targets() {
    let folder = tempfile::tempdir().unwrap();
    let x = random_ids(300, 4);
    let file = token_file(folder.path(), &x, 4);
    for weights in [vec![1.0; 5], vec![1.0, 0.5, 1.0 / 3.0, 0.25, 0.2], vec![1.0, 0.0, 0.0, 2.0, 0.0]] {
        let shape = shape(6, [5, 5]);
        let window = Window { start: 11, len: 28, epoch: 0 };
        let windows = [whole(0, shape), window, whole(200, shape)];
        let batch = Batch::read(&file, &windows, shape, &weights, 4).unwrap();
        let (mut floor, mut total) = (0.0, 0.0);
        for row in batch.targets.chunks(5) {
            let valid: Vec<usize> = (0..5).filter(|&k| row[k] != IGNORE_INDEX).collect();
            let n: f64 = valid.iter().map(|&k| weights[k]).sum();
            let mut p: HashMap<i32, f64> = HashMap::new();
            for &k in &valid {
                *p.entry(row[k]).or_default() += weights[k] / n;
            }
            let entropy: f64 = p.values().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
            if n > 0.0 {
                floor += n * entropy;
                total += n;
            }
        }
        assert!((batch.bag_entropy - floor).abs() < 1e-10 * floor.max(1.0));
        assert!((batch.valid_weight - total).abs() < 1e-10 * total);
    }
}

#[test]
fn different_targets_have_a_floor_of_log_k_and_single_ones_of_zero() {
    let folder = tempfile::tempdir().unwrap();
    let x: Vec<i32> = (0..100).collect();
    let file = token_file(folder.path(), &x, 100);
    for patch in [1, 2, 4, 8] {
        let shape = shape(3, [patch, patch]);
        let batch = Batch::read(&file, &[whole(0, shape)], shape, &[], 100).unwrap();
        let floor = batch.bag_entropy / batch.valid_weight;
        assert!((floor - (patch as f64).ln()).abs() < 1e-12);
    }
    assert!(Batch::read(&file, &[], shape(3, [1, 1]), &[], 100).is_err());
    let shape = shape(3, [2, 2]);
    assert!(Batch::read(&file, &[whole(0, shape)], shape, &[1.0], 100).is_err());
}

#[test]
fn a_stage_resumes_where_it_stood_and_loads_in_the_background() {
    let folder = tempfile::tempdir().unwrap();
    let file = token_file(folder.path(), &random_ids(1000, 50), 50);
    let stage = StageShape { window: shape(8, [2, 2]), batch: 4, windows: 100 };
    let batches = |next| StageBatches {
        file: Arc::clone(&file),
        sampler: Sampler::new(file.token_count(), None, &[stage], 3).unwrap(),
        stage: 0,
        next,
        end: 100,
        sequences: 4,
        shape: stage.window,
        weights: vec![1.0, 0.5],
        rows: 64,
    };
    let all: Vec<Batch> = batches(0).map(|batch| batch.unwrap()).collect();
    assert_eq!(all.len(), 25);
    assert!(all.iter().all(|batch| batch.sequences == 4));
    let resumed: Vec<Batch> = batches(40).map(|batch| batch.unwrap()).collect();
    assert_eq!(resumed, all[10..]);
    let loader = Loader::start(batches(0), 2).unwrap();
    let loaded: Vec<Batch> = loader.map(|batch| batch.unwrap()).collect();
    assert_eq!(loaded, all);
}

#[test]
fn an_evaluation_scores_every_token_but_the_first_once() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::bytes().unwrap();
    for count in [2, 8, 9, 10, 16, 17, 18, 100] {
        let x = random_ids(count, 256);
        let file = token_file(folder.path(), &x, 256);
        let set = EvaluationSet::new(file, &tokenizer, 8, None).unwrap();
        let batches: Vec<Batch> = set.batches(3, 256).map(|batch| batch.unwrap()).collect();
        let scored: Vec<i32> =
            batches.iter().flat_map(|batch| batch.targets.iter().copied()).filter(|&id| id != IGNORE_INDEX).collect();
        assert_eq!(scored, x[1..]);
        assert_eq!(set.tokens(), count as u64 - 1);
        assert_eq!(set.bytes(), count as u64 - 1);
        let rows: usize = batches.iter().map(|batch| batch.sequences).sum();
        assert_eq!(rows, set.windows().len());
    }
}

#[test]
fn a_capped_evaluation_lies_evenly_over_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::bytes().unwrap();
    let file = token_file(folder.path(), &random_ids(1000, 256), 256);
    let starts = |most| -> Vec<u64> {
        let set = EvaluationSet::new(Arc::clone(&file), &tokenizer, 10, most).unwrap();
        set.windows().iter().map(|window| window.start).collect()
    };
    assert_eq!(starts(Some(4)), [0, 250, 500, 750]);
    assert_eq!(starts(Some(3)), [0, 330, 660]);
    assert_eq!(starts(Some(1000)), starts(None));
    assert_eq!(starts(None).len(), 100);
    let one = token_file(folder.path(), &[1], 256);
    assert!(EvaluationSet::new(one, &tokenizer, 10, None).is_err());
    assert!(EvaluationSet::new(Arc::clone(&file), &tokenizer, 0, None).is_err());
    assert!(EvaluationSet::new(file, &tokenizer, 10, Some(0)).is_err());
}
