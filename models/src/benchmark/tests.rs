use super::*;

fn call(op: &'static str, millis: u64, flops: f64, bytes: f64) -> Call {
    Call { op, start: Duration::ZERO, elapsed: Duration::from_millis(millis), flops, bytes, shapes: vec![vec![2]] }
}

#[test]
fn calls_are_summed_by_op_and_held_against_the_roofline_one_by_one() {
    let limits = Limits { flops_per_second: 1000.0, bytes_per_second: 100.0, copied_bytes: 0 };
    let calls = [call("gelu", 4, 1.0, 2.0), call("matmul", 8, 10.0, 0.5), call("matmul", 6, 1.0, 0.5)];
    let ops = by_op(&calls, 2, Some(limits));
    assert_eq!(ops.iter().map(|op| op.name).collect::<Vec<_>>(), ["matmul", "gelu"]);
    let matmul = &ops[0];
    assert_eq!((matmul.calls, matmul.flops, matmul.bytes), (1.0, 5.5, 0.5));
    assert!((matmul.seconds - 7e-3).abs() < 1e-12);
    // The first product is bound by arithmetic (10 ms), the second by memory (5 ms); half of that is a step's.
    assert!((matmul.floor_seconds.unwrap() - 7.5e-3).abs() < 1e-12);
    assert_eq!(by_op(&calls, 1, None)[0].floor_seconds, None);
}

#[test]
fn the_median_of_an_even_number_lies_between() {
    assert_eq!(median(&[3.0]), 3.0);
    assert_eq!(median(&[1.0, 2.0, 5.0, 9.0]), 3.5);
    assert_eq!(median(&sorted([5.0, 1.0, 2.0].into_iter())), 2.0);
}

#[test]
fn steps_of_both_regimes_share_a_model() {
    let mut config = Config::preset("tiny").unwrap();
    (config.model.layers, config.model.hidden, config.model.ffn, config.model.heads) = (1, 16, 24, 2);
    (config.train.seq_len, config.train.batch_size) = (8, 2);
    let device = Device::cpu_with_threads(1).unwrap();
    let mut session = Session::new(&config, &device).unwrap();
    let mut patch = Feed::new(&config, StageName::Patch).unwrap();
    let mut token = Feed::new(&config, StageName::Token).unwrap();
    assert_eq!((patch.stage().tokens_per_step, token.stage().tokens_per_step), (64, 16));
    assert_eq!(patch.stage().model_flops_per_step, token.stage().model_flops_per_step);
    let first = session.step(&mut patch).unwrap();
    let second = session.step(&mut token).unwrap();
    for timed in [first, second] {
        assert!(timed.waited <= timed.seconds && (timed.step.loss - 256f64.ln()).abs() < 0.5, "{timed:?}");
    }
    assert_ne!(session.step(&mut token).unwrap().step.loss, second.step.loss, "every step has a batch of its own");
}
