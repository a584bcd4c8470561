//! The emulated device: builds the driver library of `emulator/` with the machine's C++ compiler, once, and loads it in the card's place.
//!
//! The library carries the first names that cudarc tries (`libcuda.so`, `libnvrtc.so`, `libcublas.so`, `libcublasLt.so`) and is loaded by its path before cudarc
//! looks for any, so that the loader gives it to cudarc. A process uses either the emulator or cards, never both.

use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_NOW};
use patchgpt_tensor::Result;

use crate::cache;
use crate::error::backend;

/// What the emulated driver calls its device.
pub(crate) const DEVICE_NAME: &str = "patchgpt emulator";

/// Files of the emulator: compiled ones first, then headers, of which `device.h` and `abi.h` are what kernels see.
const SOURCES: [(&str, &str); 12] = [
    ("scheduler.cpp", include_str!("../emulator/scheduler.cpp")),
    ("instructions.cpp", include_str!("../emulator/instructions.cpp")),
    ("asynchronous.cpp", include_str!("../emulator/asynchronous.cpp")),
    ("warpgroup.cpp", include_str!("../emulator/warpgroup.cpp")),
    ("checker.cpp", include_str!("../emulator/checker.cpp")),
    ("memory.cpp", include_str!("../emulator/memory.cpp")),
    ("device.cpp", include_str!("../emulator/device.cpp")),
    ("driver.cpp", include_str!("../emulator/driver.cpp")),
    ("gemm.cpp", include_str!("../emulator/gemm.cpp")),
    ("cublas.cpp", include_str!("../emulator/cublas.cpp")),
    ("cublaslt.cpp", include_str!("../emulator/cublaslt.cpp")),
    ("nvrtc.cpp", include_str!("../emulator/nvrtc.cpp")),
];
const HEADERS: [(&str, &str); 6] = [
    ("abi.h", include_str!("../emulator/abi.h")),
    ("device.h", include_str!("../emulator/device.h")),
    ("emulator.h", include_str!("../emulator/emulator.h")),
    ("driver.h", include_str!("../emulator/driver.h")),
    ("gemm.h", include_str!("../emulator/gemm.h")),
    ("results.h", include_str!("../emulator/results.h")),
];

/// Libraries that are the core under another name.
const STUBS: [&str; 3] = ["libnvrtc.so", "libcublas.so", "libcublasLt.so"];

/// Which driver this process uses: set by the first device that is opened.
static EMULATED: OnceLock<bool> = OnceLock::new();
static LOADED: OnceLock<std::result::Result<Emulator, String>> = OnceLock::new();

struct Emulator {
    core: Handle,
    /// Hash of the emulator's sources, compiler and checks.
    identity: String,
}

/// What is checked beside the schedule: the values of `PATCHGPT_EMULATOR_CHECK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// Nothing more.
    None,
    /// Races, uninitialised reads and bounds of shared and global memory, by instrumented loads and stores.
    Races,
    /// AddressSanitizer and UndefinedBehaviorSanitizer; the process must have been started with libasan preloaded.
    Address,
}

impl Check {
    fn from_environment() -> std::result::Result<Check, String> {
        match std::env::var("PATCHGPT_EMULATOR_CHECK").as_deref() {
            Err(_) | Ok("") => Ok(Check::None),
            Ok("races") => Ok(Check::Races),
            Ok("address") => Ok(Check::Address),
            Ok(other) => Err(format!("PATCHGPT_EMULATOR_CHECK={other}: expected races or address")),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Check::None => "none",
            Check::Races => "races",
            Check::Address => "address",
        }
    }

    /// Options for the emulator itself; those for kernels are in `nvrtc.cpp`.
    fn options(self) -> &'static [&'static str] {
        match self {
            Check::None | Check::Races => &["-O2"],
            Check::Address => &["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
        }
    }
}

/// Refuses a card in a process that has the emulator loaded, and the emulator from now on.
pub(crate) fn forbid() -> Result<()> {
    decide(false)
}

/// Loads the emulator in the place of CUDA's libraries.
pub(crate) fn load() -> Result<()> {
    decide(true)?;
    match LOADED.get_or_init(build_and_load) {
        Ok(_) => Ok(()),
        Err(message) => Err(backend("cuda:emulated", message)),
    }
}

fn decide(emulated: bool) -> Result<()> {
    match *EMULATED.get_or_init(|| emulated) == emulated {
        true => Ok(()),
        false => Err(backend(
            if emulated { "cuda:emulated" } else { "cuda" },
            "this process has opened the other kind of CUDA device: a process uses cards or the emulator, never both",
        )),
    }
}

/// What of the emulator decides machine code; empty on cards.
pub(crate) fn identity() -> &'static str {
    match LOADED.get() {
        Some(Ok(emulator)) => &emulator.identity,
        _ => "",
    }
}

/// What went wrong in this thread's last failing call of the emulated driver.
pub(crate) fn last_error() -> Option<String> {
    let Some(Ok(emulator)) = LOADED.get() else { return None };
    type LastError = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    // SAFETY: the emulator defines the symbol with this type (emulator/driver.cpp).
    let function = unsafe { emulator.core.get::<LastError>(b"emulator_last_error") }.ok()?;
    let mut text = vec![0u8; 8192];
    // SAFETY: at most so many bytes are written; their number is returned.
    let written = unsafe { function(text.as_mut_ptr().cast(), text.len()) };
    text.truncate(written);
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

fn build_and_load() -> std::result::Result<Emulator, String> {
    if !cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))) {
        return Err("the emulator runs on Linux on x86-64 and aarch64 only".into());
    }
    let check = Check::from_environment()?;
    // Which device it poses as; the driver reads the variable itself (device.cpp).
    if let Ok(other) = std::env::var("PATCHGPT_EMULATOR_CAPABILITY")
        && !["", "8.0", "9.0"].contains(&other.as_str())
    {
        return Err(format!("PATCHGPT_EMULATOR_CAPABILITY={other}: expected 8.0 or 9.0"));
    }
    let (compiler, version) = compiler()?;
    let mut parts: Vec<&[u8]> = vec![compiler.as_bytes(), version.as_bytes(), check.name().as_bytes()];
    for (name, text) in SOURCES.iter().chain(&HEADERS) {
        parts.extend([name.as_bytes(), text.as_bytes()]);
    }
    let identity = cache::hash(&parts);
    let folder = cache::folder().join(format!("emulator-{identity}"));
    if !folder.join("libcuda.so").is_file() {
        build(&folder, &compiler, check)?;
    }
    let open = |name: &str| {
        // SAFETY: a library built from this crate's sources.
        unsafe { Handle::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) }
            .map_err(|error| format!("the emulator's {name} does not load: {error}"))
    };
    let core = open("libcuda.so")?;
    for name in STUBS {
        std::mem::forget(open(name)?);
    }
    Ok(Emulator { core, identity })
}

/// The C++ compiler and what it says of its version.
fn compiler() -> std::result::Result<(String, String), String> {
    let named = std::env::var("CXX").ok().filter(|c| !c.trim().is_empty());
    let candidates: Vec<String> = match &named {
        Some(name) => vec![name.clone()],
        None => ["c++", "g++", "clang++"].map(String::from).to_vec(),
    };
    for candidate in &candidates {
        if let Ok(output) = Command::new(candidate).arg("--version").output()
            && output.status.success()
        {
            return Ok((candidate.clone(), String::from_utf8_lossy(&output.stdout).into_owned()));
        }
    }
    Err(format!(
        "the emulated device compiles the kernels with a C++ compiler, and there is none (tried {}): install g++ (on Debian and Ubuntu: \
         apt-get install g++) or clang, or name one in CXX",
        candidates.join(", ")
    ))
}

/// Builds the emulator's libraries beside their folder and moves them there.
fn build(folder: &Path, compiler: &str, check: Check) -> std::result::Result<(), String> {
    let failed = |what: &str, error: std::io::Error| format!("building the emulator: {what}: {error}");
    let beside = cache::unique(folder);
    std::fs::create_dir_all(&beside).map_err(|e| failed(&format!("cannot make {}", beside.display()), e))?;
    let write = |name: &str, text: &str| {
        std::fs::write(beside.join(name), text).map_err(|e| failed(&format!("cannot write {name}"), e))
    };
    for (name, text) in SOURCES.iter().chain(&HEADERS) {
        write(name, text)?;
    }
    write("compiler", compiler)?;
    write("check", check.name())?;
    write("empty.cpp", "")?;
    let shared = ["-std=c++17", "-fPIC", "-shared", "-fno-strict-aliasing", "-ffp-contract=off"];
    let run = |arguments: Vec<&str>| {
        let output = Command::new(compiler)
            .current_dir(&beside)
            .args(&arguments)
            .output()
            .map_err(|e| failed(&format!("{compiler} does not start"), e))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!(
                "building the emulator failed: {compiler} {}:\n{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    };
    let mut core: Vec<&str> = shared.to_vec();
    core.extend(check.options());
    core.extend(["-Wl,-soname,libcuda.so", "-o", "libcuda.so"]);
    core.extend(SOURCES.iter().map(|(name, _)| *name));
    core.extend(["-ldl", "-lpthread"]);
    run(core)?;
    for name in STUBS {
        let soname = format!("-Wl,-soname,{name}");
        // Empty libraries that need the core: a symbol looked for in them is found there.
        let stub = ["-shared", "-fPIC", &soname, "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", "-o", name, "empty.cpp"];
        run(stub.into_iter().chain(["-L.", "-l:libcuda.so"]).collect())?;
    }
    // Another process may have finished first; its libraries are the same.
    match std::fs::rename(&beside, folder) {
        Ok(()) => Ok(()),
        Err(_) if folder.join("libcuda.so").is_file() => {
            let _ = std::fs::remove_dir_all(&beside);
            Ok(())
        }
        Err(error) => Err(failed(&format!("cannot move it to {}", folder.display()), error)),
    }
}

/// Path of AddressSanitizer's library for `LD_PRELOAD`, in a process that is to run with `PATCHGPT_EMULATOR_CHECK=address`.
///
/// # Errors
/// No C++ compiler, or one without the library.
pub fn address_sanitizer() -> Result<PathBuf> {
    let failed = |message: String| backend("cuda:emulated", message);
    let (compiler, _) = compiler().map_err(failed)?;
    let output = Command::new(&compiler)
        .arg("-print-file-name=libasan.so")
        .output()
        .map_err(|e| failed(format!("{compiler} does not start: {e}")))?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    match path.is_absolute() && path.exists() {
        true => Ok(path),
        false => Err(failed(format!("{compiler} has no libasan.so; on Debian and Ubuntu: apt-get install g++"))),
    }
}

/// The C++ compiler that the emulated device uses, in the words of its version.
///
/// # Errors
/// None is installed; says what to install.
pub fn emulator_compiler() -> Result<String> {
    let (name, version) = compiler().map_err(|message| backend("cuda:emulated", message))?;
    Ok(format!("{name}: {}", version.lines().next().unwrap_or_default()))
}
