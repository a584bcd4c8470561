//! Plans held against numbers worked out by hand and against the published recipe.

use super::*;
use crate::config::{Bag, TrainConfig};
use crate::regime::{PatchBatch, PatchContext};
use crate::schedule::{ScheduleRule, Warmup};

/// The smallest preset with 16 sequences a step and 60 steps, and `change` made to its training.
fn tiny(change: impl FnOnce(&mut TrainConfig)) -> Config {
    let mut config = Config::preset("tiny").unwrap();
    (config.train.steps, config.train.flops, config.train.batch_size) = (Some(60), None, 16);
    change(&mut config.train);
    config
}

fn lambda(train: &mut TrainConfig, lambda: f64) {
    (train.patch_fraction, train.step_fraction) = (Some(lambda), None);
}

fn steps_of(config: &Config) -> Vec<(StageName, usize, u64)> {
    let plan = Plan::new(config).unwrap();
    plan.stages.iter().map(|stage| (stage.name, stage.regime.input_patch, stage.steps)).collect()
}

use StageName::{Patch, Token};

#[test]
fn the_paper_s_recipe_gives_the_paper_s_steps() {
    for name in ["370m", "780m", "1.3b", "2.7b"] {
        let plan = Plan::new(&Config::preset(name).unwrap()).unwrap();
        let [patch, token] = &plan.stages[..] else { panic!("two stages, not {:?}", plan.stages) };
        assert_eq!((patch.steps, token.steps), (120_000, 60_000));
        assert_eq!((patch.sequences, patch.positions, patch.tokens_per_step), (256, 2048, 2_097_152));
        assert_eq!((token.sequences, token.positions, token.tokens_per_step), (1024, 2048, 2_097_152));
        assert_eq!(patch.model_flops_per_step * 4.0, token.model_flops_per_step);
        assert!((plan.cost_by_formula() - 0.5).abs() < 1e-12);
        assert_eq!((plan.learning_rate(1999), plan.learning_rate(121_999)), (3e-4, 3e-4));
        assert_eq!(plan.learning_rate(120_000), 3e-4 / 2000.0);
    }
}

#[test]
fn constant_positions_turn_lambda_into_a_third_of_the_steps() {
    let config = tiny(|train| lambda(train, 2.0 / 3.0));
    assert_eq!(steps_of(&config), [(Patch, 4, 20), (Token, 1, 40)]);
    let plan = Plan::new(&config).unwrap();
    assert_eq!((plan.stages[0].tokens_per_step, plan.stages[1].tokens_per_step), (16_384, 4096));
    assert_eq!(plan.stages[0].model_flops_per_step, plan.stages[1].model_flops_per_step);
    assert_eq!(plan.stages[0].model_flops_per_step, 4096.0 * 5_726_208.0);
    assert!((plan.patch_fraction() - 2.0 / 3.0).abs() < 1e-12 && (plan.cost_by_formula() - 0.5).abs() < 1e-12);
    assert_eq!(steps_of(&tiny(|_| {})), steps_of(&config), "r = 1/3 says the same");
}

#[test]
fn constant_tokens_make_r_equal_lambda() {
    let by_batch = tiny(|train| {
        lambda(train, 0.75);
        train.patch_batch = PatchBatch::Tokens;
    });
    assert_eq!(steps_of(&by_batch), [(Patch, 4, 45), (Token, 1, 15)]);
    let by_context = tiny(|train| {
        lambda(train, 0.75);
        train.patch_context = PatchContext::Tokens;
    });
    assert_eq!(steps_of(&by_context), [(Patch, 4, 45), (Token, 1, 15)]);
    let patch = &Plan::new(&by_context).unwrap().stages[0];
    assert_eq!((patch.sequences, patch.positions, patch.positions_per_step), (16, 64, 1024));
}

#[test]
fn output_bags_read_as_slowly_as_tokens() {
    let config = tiny(|train| {
        lambda(train, 0.5);
        train.bag = Bag::Target;
    });
    let plan = Plan::new(&config).unwrap();
    assert_eq!((plan.stages[0].steps, plan.stages[1].steps), (30, 30));
    assert_eq!((plan.stages[0].name, plan.stages[0].regime.target_patch), (Patch, 4));
    assert_eq!(plan.stages[0].tokens_per_step, plan.stages[1].tokens_per_step);
    assert_eq!(plan.cost_by_formula(), 1.0, "no position is saved");
}

#[test]
fn pure_runs() {
    assert_eq!(steps_of(&tiny(|train| lambda(train, 0.0))), [(Token, 1, 60)]);
    assert_eq!(steps_of(&tiny(|train| lambda(train, 1.0))), [(Patch, 4, 60)]);
    assert_eq!(steps_of(&tiny(|train| train.patch_size = Some(1))), [(Token, 1, 60)]);
    let odd = tiny(|train| {
        lambda(train, 0.0);
        (train.batch_size, train.patch_batch) = (3, PatchBatch::Tokens);
    });
    assert_eq!(steps_of(&odd), [(Token, 1, 60)], "without patches nothing needs to divide");
}

#[test]
fn rounding_leaves_no_step_out() {
    for steps in 1..50 {
        for r in [0.1, 1.0 / 3.0, 0.5, 0.9] {
            let config = tiny(|train| {
                train.steps = Some(steps);
                train.step_fraction = Some(r);
            });
            let plan = Plan::new(&config).unwrap();
            assert_eq!(plan.steps(), steps);
            let patches: u64 = plan.stages.iter().filter(|s| s.name == Patch).map(|s| s.steps).sum();
            assert_eq!(patches, (r * steps as f64).round() as u64);
            let mut next = 0;
            for stage in &plan.stages {
                assert!(stage.first_step == next && stage.steps > 0);
                next = stage.end();
            }
        }
    }
}

#[test]
fn several_patch_sizes_share_lambda() {
    let list = |shares: Option<Vec<f64>>| {
        tiny(|train| {
            lambda(train, 0.5);
            (train.patch_size, train.patch_sizes, train.patch_shares) = (None, Some(vec![4, 2]), shares);
            train.steps = Some(110);
        })
    };
    // Equal tokens: 1/4 at K = 4, 1/4 at K = 2, 1/2 at K = 1 are steps in the ratio 1/16 : 1/8 : 1/2 = 1 : 2 : 8.
    assert_eq!(steps_of(&list(None)), [(Patch, 4, 10), (Patch, 2, 20), (Token, 1, 80)]);
    let cost = Plan::new(&list(None)).unwrap().cost_by_formula();
    assert!((cost - (0.25 / 4.0 + 0.25 / 2.0 + 0.5)).abs() < 1e-12);
    // Weights 2 : 1 are 1/3 and 1/6 of the tokens, so steps 1/12 : 1/12 : 1/2 = 1 : 1 : 6.
    let uneven = steps_of(&list(Some(vec![2.0, 1.0])));
    assert_eq!(uneven, [(Patch, 4, 14), (Patch, 2, 14), (Token, 1, 82)]);
    let by_steps = tiny(|train| {
        (train.patch_size, train.patch_sizes) = (None, Some(vec![16, 8, 4, 2]));
        train.step_fraction = Some(0.8);
    });
    assert_eq!(steps_of(&by_steps).iter().map(|stage| stage.2).collect::<Vec<_>>(), [12, 12, 12, 12, 12]);
}

#[test]
fn a_budget_of_tokens_is_met_as_closely_as_steps_allow() {
    for tokens in [10_000u64, 100_000, 123_456, 5_000_000] {
        let config = tiny(|train| {
            (train.steps, train.tokens) = (None, Some(tokens));
            lambda(train, 2.0 / 3.0);
        });
        let plan = Plan::new(&config).unwrap();
        assert!(plan.tokens().abs_diff(tokens) <= 2048, "{tokens} asked, {} planned", plan.tokens());
    }
    let exact = tiny(|train| {
        (train.steps, train.tokens) = (None, Some(20 * 16_384 + 40 * 4096));
        lambda(train, 2.0 / 3.0);
    });
    assert_eq!(steps_of(&exact), [(Patch, 4, 20), (Token, 1, 40)]);
    let only_patches = tiny(|train| {
        (train.steps, train.tokens) = (None, Some(100_000));
        lambda(train, 1.0);
    });
    assert_eq!(steps_of(&only_patches), [(Patch, 4, 6)]);
}

#[test]
fn a_budget_of_flops_is_filled_and_not_exceeded() {
    let step = 4096.0 * 5_726_208.0;
    let with = |flops: f64, change: fn(&mut TrainConfig)| {
        tiny(|train| {
            (train.steps, train.flops) = (None, Some(flops));
            change(train);
        })
    };
    assert_eq!(Plan::new(&with(60.0 * step, |_| {})).unwrap().steps(), 60);
    assert_eq!(Plan::new(&with(60.0 * step - 1e6, |_| {})).unwrap().steps(), 59);
    assert_eq!(Plan::new(&with(61.0 * step - 1e6, |_| {})).unwrap().steps(), 60);
    let cheap_patches = |train: &mut TrainConfig| {
        train.patch_batch = PatchBatch::Tokens;
        lambda(train, 0.5);
    };
    // Half of the steps at a quarter of the cost: 100 token steps' worth pays for 80 of each.
    let plan = Plan::new(&with(100.0 * step, cheap_patches)).unwrap();
    assert_eq!(plan.stages.iter().map(|stage| stage.steps).collect::<Vec<_>>(), [80, 80]);
    assert_eq!(plan.model_flops(), 100.0 * step);
}

#[test]
fn budgets_below_one_step_are_refused() {
    let tokens = tiny(|train| (train.steps, train.tokens) = (None, Some(100)));
    let error = Plan::new(&tokens).unwrap_err();
    assert!(error.to_string().contains("100 tokens") && error.to_string().contains("16384 tokens"), "{error}");
    assert_eq!(error.exit_code(), 2);
    let flops = tiny(|train| (train.steps, train.flops) = (None, Some(1e6)));
    assert!(Plan::new(&flops).unwrap_err().to_string().contains("1e6 model FLOPs"));
}

#[test]
fn absurd_budgets_are_refused_and_do_not_overflow() {
    for change in [
        (|train| train.steps = Some(u64::MAX)) as fn(&mut TrainConfig),
        |train| (train.steps, train.tokens) = (None, Some(u64::MAX)),
        |train| (train.steps, train.flops) = (None, Some(f64::MAX)),
    ] {
        let error = Plan::new(&tiny(change)).unwrap_err().to_string();
        assert!(error.contains("1e18"), "{error}");
    }
    let batch = tiny(|train| train.batch_size = usize::MAX / 2);
    assert!(Plan::new(&batch).unwrap_err().to_string().contains("2^40"));
}

#[test]
fn totals_follow_the_steps_across_the_switch() {
    let plan = Plan::new(&tiny(|_| {})).unwrap();
    assert_eq!(plan.totals(0), Totals::default());
    assert_eq!((plan.totals(20).tokens, plan.totals(21).tokens), (20 * 16_384, 20 * 16_384 + 4096));
    assert_eq!(plan.totals(21).positions, 21 * 4096);
    assert_eq!(plan.totals(1000), plan.totals(60));
    assert_eq!([0, 19, 20, 59, 60].map(|step| plan.stage_at(step)), [Some(0), Some(0), Some(1), Some(1), None]);
}

#[test]
fn gradient_accumulation_does_not_change_the_step() {
    let whole = Plan::new(&tiny(|_| {})).unwrap();
    let cut = Plan::new(&tiny(|train| train.micro_batch = Some(5))).unwrap();
    assert_eq!((whole.stages[0].micro_batch, cut.stages[0].micro_batch), (16, 5));
    assert_eq!(whole.tokens(), cut.tokens());
    assert!(cut.describe().contains("in 4 passes") && !whole.describe().contains("passes"));
}

#[test]
fn the_token_arm_has_equal_compute_or_equal_tokens() {
    let patches = tiny(|train| train.warmup = Warmup::Fraction(0.1));
    let plan = Plan::new(&patches).unwrap();
    let compute = patches.token_only(EqualBudget::Compute).unwrap();
    let arm = Plan::new(&compute).unwrap();
    assert_eq!(arm.model_flops(), plan.model_flops());
    assert_eq!((arm.stages.len(), arm.stages[0].name, arm.steps()), (1, Token, 60));
    assert_eq!((compute.train.lr, compute.train.seed), (patches.train.lr, patches.train.seed));
    assert_eq!(arm.cost_by_formula(), 1.0);

    let tokens = Plan::new(&patches.token_only(EqualBudget::Tokens).unwrap()).unwrap();
    assert_eq!(tokens.tokens(), plan.tokens());
    assert_eq!(tokens.steps(), 120);
    assert!((plan.model_flops() / tokens.model_flops() - plan.cost_by_formula()).abs() < 1e-12);
}

#[test]
fn the_token_arm_of_a_huge_run_loses_no_step_to_rounding() {
    let patches = Config::preset("2.7b").unwrap();
    let plan = Plan::new(&patches).unwrap();
    let arm = Plan::new(&patches.token_only(EqualBudget::Compute).unwrap()).unwrap();
    assert_eq!(arm.steps(), 90_000);
    assert!((arm.model_flops() / plan.model_flops() - 1.0).abs() < 1e-12);
}

#[test]
fn schedules_follow_the_stages() {
    let rewarm = tiny(|train| (train.schedule, train.warmup) = (ScheduleRule::Rewarm, Warmup::Steps(4)));
    let plan = Plan::new(&rewarm).unwrap();
    assert_eq!([0, 3, 20, 23].map(|step| plan.learning_rate(step)), [5e-4, 2e-3, 5e-4, 2e-3]);
    let too_long = tiny(|train| (train.schedule, train.warmup) = (ScheduleRule::Rewarm, Warmup::Steps(30)));
    let error = Plan::new(&too_long).unwrap_err().to_string();
    assert!(error.contains("30 steps") && error.contains("20 steps"), "{error}");
}

#[test]
fn the_description_holds_the_resolved_numbers() {
    let text = Plan::new(&tiny(|train| lambda(train, 2.0 / 3.0))).unwrap().describe();
    for part in [
        "patches of 4; 20 steps of 16 x 256",
        "16384 tokens a step",
        "lambda = 0.6667",
        "r = 0.3333",
        "cost 0.500",
        "6*N",
        "warm-up over 3 steps",
    ] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    assert_eq!(text.matches("warm-up").count(), 1, "one schedule, one warm-up");
}
