//! NVIDIA's compiler over every kernel: registers, stack, spills and static shared memory of each specialisation on
//! each architecture are held against `resources.tsv` beside this file, and kernels written for tensor cores must have
//! their instructions in the machine code.
//!
//! Neither driver nor card is needed, only NVRTC and nvdisasm:
//!
//! ```sh
//! pip install nvidia-cuda-nvrtc==13.5.37 nvidia-cuda-nvdisasm==13.5.37
//! export PATCHGPT_CUDA_LIBRARIES=.../site-packages/nvidia/cu13/lib
//! cargo test -p patchgpt-cuda --test resources
//! ```
//!
//! Without NVRTC the test says so and passes, unless PATCHGPT_REQUIRE_NVRTC is set. PATCHGPT_UPDATE_RESOURCES=1 writes
//! the table anew: its difference belongs in the commit that changes a kernel.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use patchgpt_cuda::{Specialisation, compile, probe, specialisations};

const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100a"];
/// The compiler that the table is of; another one is held to "no spills" alone.
const COMPILER: &str = "13.5";

/// What ptxas reports of an entry point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Resources {
    registers: usize,
    stack: usize,
    spilled: usize,
    shared: usize,
}

/// Rows of the table: specialisation and entry point, and for each architecture its column.
type Table = BTreeMap<(String, String), [String; ARCHITECTURES.len()]>;

/// The number before `words`, or 0.
fn before(line: &str, words: &str) -> usize {
    let Some(at) = line.find(words) else { return 0 };
    line[..at].trim_end().rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Entry points and their resources in what the compiler says under `--ptxas-options=-v`.
fn parse(log: &str) -> Vec<(String, Resources)> {
    let mut found: Vec<(String, Resources)> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            found.push((rest.split('\'').next().unwrap_or("").to_string(), Resources::default()));
        }
        let Some((_, resources)) = found.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            resources.stack = before(line, " bytes stack frame");
            resources.spilled = before(line, " bytes spill stores") + before(line, " bytes spill loads");
        }
        if line.contains("Used ") {
            resources.registers = before(line, " registers");
            resources.shared = before(line, " bytes smem");
        }
    }
    found
}

/// Whether a kernel is written in the instructions of sm_90a, which no other architecture has.
fn is_for_hopper(specialisation: &Specialisation) -> bool {
    specialisation.source.headers.iter().any(|&(name, _)| name == "hopper.cuh")
}

/// The instructions that a kernel is written for: of tensor cores by warps and by warpgroups, of the copy engine.
fn wanted_instructions(specialisation: &Specialisation) -> Vec<&'static str> {
    let source = specialisation.source;
    let uses = |function| source.text.contains(function) || source.headers.iter().any(|(_, t)| t.contains(function));
    match is_for_hopper(specialisation) {
        true => vec!["HGMMA", "UTMALDG", "USETMAXREG"],
        false => {
            if uses("multiply_16x8x16") {
                vec!["HMMA"]
            } else {
                vec![]
            }
        }
    }
}

/// nvdisasm: beside the libraries of its pip package, or in PATH.
fn disassembler() -> PathBuf {
    let folder = std::env::var_os("PATCHGPT_CUDA_LIBRARIES").map(PathBuf::from).unwrap_or_default();
    let beside = folder.join("../bin/nvdisasm");
    if beside.is_file() { beside } else { "nvdisasm".into() }
}

/// Machine code as text.
fn disassemble(cubin: &[u8], folder: &Path, number: usize) -> Result<String, String> {
    let path = folder.join(format!("{number}.cubin"));
    std::fs::write(&path, cubin).map_err(|e| format!("{}: {e}", path.display()))?;
    let tool = disassembler();
    let output = Command::new(&tool).arg(&path).output();
    let _ = std::fs::remove_file(&path);
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(format!("{} (pip install nvidia-cuda-nvdisasm): {error}", tool.display())),
    }
}

/// Compiles one specialisation for one architecture into the table, or tells what is wrong with it.
fn build(
    specialisation: &Specialisation,
    column: usize,
    folder: &Path,
    number: usize,
    table: &Mutex<Table>,
) -> Result<(), String> {
    let architecture = ARCHITECTURES[column];
    let compiled = compile(specialisation, architecture, &["--ptxas-options=-v"]).map_err(|e| e.to_string())?;
    let entries = parse(&compiled.log);
    if entries.is_empty() {
        return Err(format!("the compiler reports no entry point:\n{}", compiled.log));
    }
    for (entry, r) in &entries {
        let text = format!("{} {} {} {}", r.registers, r.stack, r.spilled, r.shared);
        let mut table = table.lock().map_err(|e| e.to_string())?;
        table.entry((specialisation.to_string(), entry.clone())).or_default()[column] = text;
    }
    if let Some((entry, r)) = entries.iter().find(|(_, r)| r.spilled > 0) {
        return Err(format!("{entry} spills {} bytes", r.spilled));
    }
    // C7508 to C7514: setmaxnreg that is ignored, products of a warpgroup that do not overlap with anything.
    if let Some(line) = compiled.log.lines().find(|line| line.contains("serialized") || line.contains("setmaxnreg")) {
        return Err(line.trim().to_string());
    }
    let wanted = wanted_instructions(specialisation);
    if wanted.is_empty() {
        return Ok(());
    }
    let code = disassemble(&compiled.cubin, folder, number)?;
    match wanted.iter().find(|instruction| !code.contains(**instruction)) {
        Some(missing) => Err(format!("no {missing} in the machine code")),
        None => Ok(()),
    }
}

const HEADER: &str = "specialisation\tentry";

fn write(table: &Table) -> String {
    let mut text = format!(
        "# Registers, bytes of stack, spilled, of static shared memory; NVRTC {COMPILER}; by resources.rs.\n{HEADER}\t{}\n",
        ARCHITECTURES.join("\t")
    );
    for ((specialisation, entry), columns) in table {
        let _ = writeln!(text, "{specialisation}\t{entry}\t{}", columns.join("\t"));
    }
    text
}

#[test]
fn registers_and_shared_memory_are_those_of_the_table() {
    let version = match probe().nvrtc {
        Ok((major, minor)) => format!("{major}.{minor}"),
        Err(missing) => {
            assert!(std::env::var_os("PATCHGPT_REQUIRE_NVRTC").is_none(), "{missing}");
            eprintln!("skipped: {missing}");
            return;
        }
    };
    let folder = tempfile::tempdir().expect("a folder for machine code");
    let all = specialisations();
    let jobs: Vec<(usize, usize)> = (0..all.len())
        .flat_map(|s| (0..ARCHITECTURES.len()).map(move |a| (s, a)))
        .filter(|&(s, a)| !is_for_hopper(&all[s]) || ARCHITECTURES[a] == "sm_90a")
        .collect();
    let (next, table, failures) = (AtomicUsize::new(0), Mutex::new(Table::new()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&(s, a)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let number = s * ARCHITECTURES.len() + a;
                    if let Err(error) = build(&all[s], a, folder.path(), number, &table) {
                        failures
                            .lock()
                            .expect("failures")
                            .push(format!("{} for {}: {error}", all[s], ARCHITECTURES[a]));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("failures");
    assert!(failures.is_empty(), "{}", failures.join("\n"));

    let now = write(&table.into_inner().expect("the table"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/resources.tsv");
    if std::env::var_os("PATCHGPT_UPDATE_RESOURCES").is_some() {
        std::fs::write(&path, now).expect("the table can be written");
        return;
    }
    if version != COMPILER {
        eprintln!("NVRTC {version}: nothing spills; the table is of {COMPILER} and not compared");
        return;
    }
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), now.lines().collect());
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("- {line}\n"));
    let come = new.iter().filter(|line| !old.contains(line)).map(|line| format!("+ {line}\n"));
    let different: String = gone.chain(come).collect();
    assert!(
        different.is_empty(),
        "the kernels' resources are not those of {} (PATCHGPT_UPDATE_RESOURCES=1 writes them):\n{different}",
        path.display()
    );
}

#[test]
fn reports_are_understood() {
    let log = "ptxas info    : Compiling entry function 'scale' for 'sm_80'\n\
               ptxas info    : Function properties for scale\n    \
               8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
               ptxas info    : Used 34 registers, used 1 barriers, 4224 bytes smem, 388 bytes cmem[0]\n";
    let expected = Resources { registers: 34, stack: 8, spilled: 16, shared: 4224 };
    assert_eq!(parse(log), [("scale".to_string(), expected)]);
}
