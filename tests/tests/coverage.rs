//! No op without its table and its reference: the primitives of the contract, and every file among the differentiable ops. And the tables
//! hold what they promise: sizes, placements, costs, names.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;

use patchgpt_tensor::PRIMITIVES;
use patchgpt_tests::array::{Array, Placement};
use patchgpt_tests::cases::{self, Case};

fn source(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Names of the Rust files in a folder, without `mod.rs`.
fn files(folder: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(source(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(".rs").map(str::to_string)).filter(|name| name != "mod").collect()
}

fn differentiable() -> BTreeSet<String> {
    let ops = files("autograd/src/ops");
    assert!(ops.len() >= 20, "the ops of autograd have moved: {ops:?}");
    ops
}

/// The modules that a `mod.rs` declares.
fn declared(folder: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(source(folder).join("mod.rs")).unwrap();
    let modules = text.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    modules.filter_map(|rest| rest.strip_suffix(';')).map(str::to_string).collect()
}

#[test]
fn every_op_has_a_table_and_a_reference() {
    let all = cases::all();
    let tables: BTreeSet<&str> = all.iter().map(|case| case.op).collect();
    let direct = cases::direct();
    let with_direct: BTreeSet<&str> = direct.iter().map(|case| case.op).chain(tables.iter().copied()).collect();
    let ops = differentiable();
    let mut missing = Vec::new();
    for op in &ops {
        if !tables.contains(op.as_str()) {
            missing.push(format!("{op} is differentiable and has no case table"));
        }
    }
    for op in ops.iter().map(String::as_str).chain(PRIMITIVES.iter().copied()) {
        if !with_direct.contains(op) {
            missing.push(format!("{op} has no case"));
        }
        for folder in ["tests/src/cases", "tests/src/reference"] {
            if !declared(folder).contains(op) || !files(folder).contains(op) {
                missing.push(format!("{op} has no file in {folder}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_op_has_a_large_case() {
    let mut largest = BTreeMap::new();
    for case in cases::large() {
        let n = case.inputs[0].0.data.len();
        assert!(n >= 10_000, "{}: {n} elements", case.label());
        largest.insert(case.op.to_string(), n);
    }
    assert_eq!(largest.into_keys().collect::<BTreeSet<_>>(), differentiable());
}

#[test]
fn every_table_has_awkward_sizes_and_every_placement() {
    let mut tables: BTreeMap<&str, Vec<Case>> = BTreeMap::new();
    for case in cases::all() {
        tables.entry(case.op).or_default().push(case);
    }
    for (op, table) in tables {
        let sizes: HashSet<usize> =
            table.iter().flat_map(|case| case.inputs.iter().flat_map(|(x, _)| x.shape.clone())).collect();
        let placements: Vec<Placement> = table.iter().flat_map(|case| case.inputs.iter().map(|(_, p)| *p)).collect();
        for placement in Placement::ALL {
            assert!(placements.contains(&placement), "{op} is never {placement:?}");
        }
        let odd = |&size: &usize| size > 2 && size % 2 == 1;
        assert!(sizes.contains(&1) && sizes.iter().any(odd), "{op} lacks a size of 1 or an odd one: {sizes:?}");
        // A vector of f32 has 8 or 16 elements.
        assert!(sizes.iter().any(|size| size % 8 != 0), "{op}: {sizes:?}");
        // An embedding of no ids has a table all the same.
        let empty = |case: &Case| {
            let inputs: Vec<Array> = case.inputs.iter().map(|(a, p)| p.values(a)).collect();
            inputs.iter().any(|x| x.data.is_empty()) || (case.forward)(&inputs).data.is_empty()
        };
        assert!(table.iter().any(empty), "{op} is never empty");
    }
}

#[test]
fn patches_and_head_sizes_are_those_of_the_models() {
    let names = |op: &str| -> Vec<String> { cases::all().into_iter().filter(|c| c.op == op).map(|c| c.name).collect() };
    for k in [1, 2, 3, 4, 8, 16] {
        let has = |op: &str, part: String| assert!(names(op).iter().any(|n| n.contains(&part)), "{op} lacks {part}");
        has("cross_entropy", format!("with {k} targets"));
        has("linear_cross_entropy", format!(" {k} targets"));
        has("patch_embedding", format!("{k}] of a table"));
    }
    for d in [16, 32, 64, 80, 96, 128] {
        let grouped = |case: &Case| {
            let (q, k) = (&case.inputs[0].0.shape, &case.inputs[1].0.shape);
            q[3] == d && q[2] > k[2]
        };
        let attention = |case: &Case| case.op == "causal_attention";
        assert!(cases::all().iter().any(|c| attention(c) && grouped(c)), "no grouped heads of size {d}");
        assert!(cases::all().iter().any(|c| c.op == "rope" && c.inputs[0].0.shape[3] == d), "no rotation of size {d}");
    }
}

#[test]
fn names_are_unique_and_costs_are_numbers() {
    let mut seen = HashSet::new();
    let mut check = |label: String, elements: usize, flops: f64, traffic: f64| {
        let cost = |x: f64| x.is_finite() && x >= 0.0;
        assert!(cost(flops) && cost(traffic), "{label}: {flops} operations, {traffic} elements");
        // Views cost nothing to make; whoever reads or writes elements moves bytes.
        assert!(elements == 0 || traffic > 0.0, "{label} moves nothing");
        assert!(seen.insert(label.clone()), "two cases are called {label}");
    };
    for case in cases::all() {
        let inputs: Vec<Array> = case.inputs.iter().map(|(a, p)| p.values(a)).collect();
        check(case.label(), (case.forward)(&inputs).data.len(), case.flops, case.traffic);
        assert_eq!(case.bytes(patchgpt_tensor::DType::F32), 4.0 * case.traffic);
    }
    for case in cases::direct() {
        let written: usize = (case.expected)(case.dtypes[0]).iter().map(|a| a.data.len()).sum();
        check(case.label(), written.min(case.traffic as usize), case.flops, case.traffic);
        assert_eq!(case.bytes(patchgpt_tensor::DType::F64), 8.0 * case.traffic);
    }
    for op in ["matmul", "linear", "causal_attention", "self_attention", "linear_cross_entropy"] {
        let counted = |case: &Case| case.op == op && case.flops > 0.0;
        assert!(cases::large().iter().any(counted), "{op} is bound by arithmetic and has no count of it");
    }
}
