//! From the text of a kernel to a function on the device: NVRTC, the disk cache, modules.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use cudarc::driver::sys::{self, CUfunction_attribute, CUresult};
use cudarc::nvrtc::sys as nvrtc;
use patchgpt_tensor::{Error, Result};

use crate::device::Cuda;
use crate::emulator;
use crate::error::backend;
use crate::launch::{Define, Specialisation};
use crate::memory::Context;
use crate::{cache, probe};

/// The headers that every kernel may include, whatever headers of its own it names.
const PRELUDE: [(&str, &str); 2] = [
    ("prelude.cuh", include_str!("../kernels/prelude.cuh")),
    ("tensor_cores.cuh", include_str!("../kernels/tensor_cores.cuh")),
];

/// A specialisation's identity: name of the file, address of its text, macros.
type Key = (&'static str, usize, Vec<(&'static str, Define)>);

/// Compiles kernels for one device and keeps what it has compiled.
pub(crate) struct Compiler {
    context: Arc<Context>,
    architecture: String,
    /// What else decides the machine code: the compiler's version.
    identity: String,
    modules: Mutex<HashMap<Key, Arc<OnceLock<Module>>>>,
    functions: Mutex<HashMap<(Key, &'static str), Function>>,
}

/// A loaded cubin.
struct Module {
    raw: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: a module is used from any thread with its context current.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: loaded once, and nothing on the stream runs its code.
            unsafe { sys::cuModuleUnload(self.raw) };
        }
    }
}

/// An entry point on the device; its module lives as long as the [`Compiler`].
#[derive(Clone)]
pub(crate) struct Function(Arc<FunctionData>);

struct FunctionData {
    raw: sys::CUfunction,
    parameters: Option<Vec<usize>>,
    threads: usize,
    static_shared: usize,
    /// Bytes of dynamic shared memory that launches may ask for so far.
    allowed: Mutex<usize>,
}

// SAFETY: a function handle is used from any thread with its context current.
unsafe impl Send for FunctionData {}
// SAFETY: as above.
unsafe impl Sync for FunctionData {}

impl Function {
    pub(crate) fn raw(&self) -> sys::CUfunction {
        self.0.raw
    }

    /// Sizes of the parameters, where the driver tells (12.4 and newer).
    pub(crate) fn parameters(&self) -> Option<&[usize]> {
        self.0.parameters.as_deref()
    }

    /// The largest block.
    pub(crate) fn threads(&self) -> usize {
        self.0.threads
    }

    /// Lets launches have `bytes` of dynamic shared memory.
    pub(crate) fn allow_shared(&self, cuda: &Cuda, bytes: usize, entry: &str) -> Result<()> {
        let mut allowed = self.0.allowed.lock().unwrap_or_else(|e| e.into_inner());
        if bytes <= *allowed {
            return Ok(());
        }
        let most = cuda.shared_memory_per_block().saturating_sub(self.0.static_shared);
        if bytes > most {
            return Err(backend(
                cuda,
                format!(
                    "{entry}: {bytes} bytes of dynamic shared memory; this device has at most {most} for this kernel"
                ),
            ));
        }
        cuda.bind()?;
        // SAFETY: the function is loaded in this context.
        let result = unsafe {
            sys::cuFuncSetAttribute(
                self.0.raw,
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                bytes as i32,
            )
        };
        cuda.check(result, || format!("allowing {entry} {bytes} bytes of shared memory"))?;
        *allowed = bytes;
        Ok(())
    }
}

impl Compiler {
    pub(crate) fn new(context: Arc<Context>, capability: (i32, i32)) -> Result<Compiler> {
        let (major, minor) = probe::nvrtc_version()?;
        if let Some((served, _)) = probe::driver_version()
            && served < major
        {
            let advice = probe::Library::Nvrtc.advice();
            let message =
                format!("libnvrtc is of CUDA {major}, and the driver loads machine code up to CUDA {served}: {advice}");
            return Err(backend(context.name(), message));
        }
        let identity = format!("NVRTC {major}.{minor} {}", emulator::identity());
        let architecture =
            architecture(capability, &supported()?).map_err(|message| backend(context.name(), message))?;
        Ok(Compiler { context, architecture, identity, modules: Mutex::default(), functions: Mutex::default() })
    }

    /// The function of an entry point, compiled and loaded the first time.
    pub(crate) fn function(&self, specialisation: &Specialisation, entry: &'static str) -> Result<Function> {
        let key: Key =
            (specialisation.source.name, specialisation.source.text.as_ptr() as usize, specialisation.defines.clone());
        let key = (key, entry);
        if let Some(function) = self.functions.lock().unwrap_or_else(|e| e.into_inner()).get(&key) {
            return Ok(function.clone());
        }
        // Threads that want the same specialisation may both compile it; the first to finish decides.
        let slot = self.modules.lock().unwrap_or_else(|e| e.into_inner()).entry(key.0.clone()).or_default().clone();
        if slot.get().is_none() {
            let module = self.load(&self.build(specialisation)?, specialisation)?;
            let _ = slot.set(module);
        }
        let Some(module) = slot.get() else {
            return Err(backend(self.context.name(), format!("{specialisation} was not loaded")));
        };
        let function = self.entry(module, specialisation, entry)?;
        self.functions.lock().unwrap_or_else(|e| e.into_inner()).insert(key, function.clone());
        Ok(function)
    }

    /// The machine code of a specialisation, from the disk cache or NVRTC.
    pub(crate) fn build(&self, specialisation: &Specialisation) -> Result<Vec<u8>> {
        let program = Program::new(specialisation, &self.architecture, &["-lineinfo"])
            .map_err(|message| backend(self.context.name(), message))?;
        let path = cache::folder().join("kernels").join(format!(
            "{}-{}.cubin",
            specialisation.source.name,
            program.hash(&self.identity)
        ));
        if let Some(cubin) = cache::read(&path) {
            return Ok(cubin);
        }
        let compiled = program.compile().map_err(|message| backend(self.context.name(), message))?;
        cache::write(&path, &compiled.cubin);
        Ok(compiled.cubin)
    }

    fn load(&self, cubin: &[u8], specialisation: &Specialisation) -> Result<Module> {
        self.context.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a whole cubin from NVRTC (its hash has been checked if it comes from disk).
        let result = unsafe { sys::cuModuleLoadData(&mut raw, cubin.as_ptr().cast()) };
        self.context.check(result, || format!("loading {specialisation}"))?;
        Ok(Module { raw, context: self.context.clone() })
    }

    fn entry(&self, module: &Module, specialisation: &Specialisation, entry: &str) -> Result<Function> {
        let failed = |what: String| backend(self.context.name(), what);
        let name = CString::new(entry).map_err(|_| failed(format!("`{entry}` is no name")))?;
        self.context.bind()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in a null byte.
        let result = unsafe { sys::cuModuleGetFunction(&mut raw, module.raw, name.as_ptr()) };
        if result == CUresult::CUDA_ERROR_NOT_FOUND {
            return Err(failed(format!(
                "{specialisation} has no entry point `{entry}`; KERNEL({entry}, ...) declares one"
            )));
        }
        self.context.check(result, || format!("looking for {entry} in {specialisation}"))?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the function is loaded and the pointer valid.
            let result = unsafe { sys::cuFuncGetAttribute(&mut value, which, raw) };
            self.context.check(result, || format!("asking for the limits of {entry}"))?;
            Ok::<usize, Error>(value as usize)
        };
        let threads = attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        let static_shared = attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        // More than this needs the kernel's consent.
        let allowed = Mutex::new((48usize << 10).saturating_sub(static_shared));
        Ok(Function(Arc::new(FunctionData { raw, parameters: parameters(raw), threads, static_shared, allowed })))
    }
}

/// Sizes of a function's parameters, if the driver can tell.
fn parameters(function: sys::CUfunction) -> Option<Vec<usize>> {
    // SAFETY: the driver is present; the symbol is looked up, not called.
    if unsafe { sys::culib().get::<unsafe extern "C" fn()>(b"cuFuncGetParamInfo") }.is_err() {
        return None;
    }
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the symbol is there, the pointers are valid; an index beyond the last answers with an error.
        match unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &mut offset, &mut size) } {
            CUresult::CUDA_SUCCESS => sizes.push(size),
            _ => return Some(sizes),
        }
    }
}

/// The architectures that NVRTC knows, as numbers such as 90.
fn supported() -> Result<Vec<i32>> {
    let mut count = 0;
    // SAFETY: the library is present and the pointer valid.
    let first = unsafe { nvrtc::nvrtcGetNumSupportedArchs(&mut count) };
    let mut all = vec![0; count.max(0) as usize];
    // SAFETY: as above; the buffer has as many places as were asked for.
    let second = unsafe { nvrtc::nvrtcGetSupportedArchs(all.as_mut_ptr()) };
    match [first, second].into_iter().find(|&r| r != nvrtc::nvrtcResult::NVRTC_SUCCESS) {
        Some(other) => Err(backend("cuda", format!("libnvrtc does not tell its architectures: {other:?}"))),
        None => Ok(all),
    }
}

/// The name of the architecture to compile for: with all the instructions of exactly this chip, where there are such.
fn architecture((major, minor): (i32, i32), supported: &[i32]) -> std::result::Result<String, String> {
    let number = major * 10 + minor;
    if !supported.contains(&number) {
        return Err(format!(
            "this NVRTC cannot compile for compute capability {major}.{minor} (it knows {supported:?}): {}",
            probe::Library::Nvrtc.advice()
        ));
    }
    Ok(format!("sm_{number}{}", if major >= 9 { "a" } else { "" }))
}

/// What a compilation gave.
pub struct Compiled {
    /// Machine code.
    pub cubin: Vec<u8>,
    /// What the compiler said: warnings, and what `--ptxas-options=-v` reports.
    pub log: String,
}

/// Compiles a specialisation for an architecture such as `sm_90a`, without a device; `options` are NVRTC's own.
///
/// # Errors
/// No NVRTC; a kernel that does not compile, with the compiler's messages.
pub fn compile(specialisation: &Specialisation, architecture: &str, options: &[&str]) -> Result<Compiled> {
    probe::Library::Nvrtc.require()?;
    Program::new(specialisation, architecture, options)
        .and_then(|program| program.compile())
        .map_err(|message| backend("cuda", message))
}

/// Text, headers and options of a compilation.
struct Program {
    name: String,
    text: String,
    headers: Vec<(String, String)>,
    options: Vec<String>,
}

impl Program {
    fn new(
        specialisation: &Specialisation,
        architecture: &str,
        options: &[&str],
    ) -> std::result::Result<Program, String> {
        let source = specialisation.source;
        let headers = PRELUDE
            .iter()
            .chain(source.headers)
            .map(|&(name, text)| Ok((name.to_string(), from_kernel_folder(name, text)?)))
            .collect::<std::result::Result<_, String>>()?;
        let name = format!("{}.cu", source.name);
        let text = from_kernel_folder(&name, source.text)?;
        let mut all = vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into()];
        all.extend(options.iter().map(|o| o.to_string()));
        all.extend(specialisation.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        Ok(Program { name, text, headers, options: all })
    }

    fn hash(&self, identity: &str) -> String {
        let mut parts = vec![identity, &self.name, &self.text];
        parts.extend(self.headers.iter().flat_map(|(name, text)| [&**name, &**text]));
        parts.extend(self.options.iter().map(|o| &**o));
        cache::hash(&parts.iter().map(|p| p.as_bytes()).collect::<Vec<_>>())
    }

    fn compile(&self) -> std::result::Result<Compiled, String> {
        let c = |text: &str| CString::new(text).map_err(|_| format!("{} holds a null byte", self.name));
        let (text, name) = (c(&self.text)?, c(&self.name)?);
        let header_texts = self.headers.iter().map(|(_, text)| c(text)).collect::<std::result::Result<Vec<_>, _>>()?;
        let header_names = self.headers.iter().map(|(name, _)| c(name)).collect::<std::result::Result<Vec<_>, _>>()?;
        let options = self.options.iter().map(|o| c(o)).collect::<std::result::Result<Vec<_>, _>>()?;
        let pointers = |all: &[CString]| all.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (header_texts, header_names, option_pointers) =
            (pointers(&header_texts), pointers(&header_names), pointers(&options));
        let mut raw = std::ptr::null_mut();
        // SAFETY: all strings end in null and outlive the call; both header arrays have the number of entries passed.
        let created = unsafe {
            nvrtc::nvrtcCreateProgram(
                &mut raw,
                text.as_ptr(),
                name.as_ptr(),
                header_texts.len() as i32,
                header_texts.as_ptr(),
                header_names.as_ptr(),
            )
        };
        if created != nvrtc::nvrtcResult::NVRTC_SUCCESS {
            return Err(format!("NVRTC does not take {}: {}", self.name, nvrtc_text(created)));
        }
        let program = RawProgram(raw);
        // SAFETY: the program is alive; the options are as many as said.
        let result =
            unsafe { nvrtc::nvrtcCompileProgram(program.0, option_pointers.len() as i32, option_pointers.as_ptr()) };
        let log = program.bytes(nvrtc::nvrtcGetProgramLogSize, nvrtc::nvrtcGetProgramLog);
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_string();
        if result != nvrtc::nvrtcResult::NVRTC_SUCCESS {
            return Err(format!(
                "{} does not compile ({}; options {}):\n{}",
                self.name,
                nvrtc_text(result),
                self.options.join(" "),
                with_source_lines(&log, &self.name, &self.text, &self.headers)
            ));
        }
        let cubin = program.bytes(nvrtc::nvrtcGetCUBINSize, nvrtc::nvrtcGetCUBIN);
        if cubin.is_empty() {
            return Err(format!("NVRTC gave no machine code for {} with {}", self.name, self.options.join(" ")));
        }
        Ok(Compiled { cubin, log })
    }
}

/// An NVRTC program, destroyed when dropped.
struct RawProgram(nvrtc::nvrtcProgram);

impl RawProgram {
    /// Bytes that one function tells the number of and another copies.
    fn bytes(
        &self,
        size: unsafe fn(nvrtc::nvrtcProgram, *mut usize) -> nvrtc::nvrtcResult,
        copy: unsafe fn(nvrtc::nvrtcProgram, *mut std::ffi::c_char) -> nvrtc::nvrtcResult,
    ) -> Vec<u8> {
        let mut bytes = 0;
        // SAFETY: the program is alive and the pointer valid.
        if unsafe { size(self.0, &mut bytes) } != nvrtc::nvrtcResult::NVRTC_SUCCESS {
            return Vec::new();
        }
        let mut out = vec![0u8; bytes];
        // SAFETY: the buffer has as many bytes as were asked for.
        let result = unsafe { copy(self.0, out.as_mut_ptr().cast()) };
        if result == nvrtc::nvrtcResult::NVRTC_SUCCESS { out } else { Vec::new() }
    }
}

impl Drop for RawProgram {
    fn drop(&mut self) {
        // SAFETY: created once and destroyed once.
        unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn nvrtc_text(result: nvrtc::nvrtcResult) -> String {
    // SAFETY: NVRTC gives a string of static lifetime for every result.
    unsafe { CStr::from_ptr(nvrtc::nvrtcGetErrorString(result)) }.to_string_lossy().into_owned()
}

/// A kernel file's text: that of `PATCHGPT_KERNEL_DIR` if the folder is named and holds the file, else the embedded one.
fn from_kernel_folder(name: &str, embedded: &str) -> std::result::Result<String, String> {
    let Some(folder) = std::env::var_os("PATCHGPT_KERNEL_DIR").filter(|f| !f.is_empty()) else {
        return Ok(embedded.to_string());
    };
    let path = PathBuf::from(folder).join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(embedded.to_string()),
        Err(error) => Err(format!("PATCHGPT_KERNEL_DIR: {} cannot be read: {error}", path.display())),
    }
}

/// The compiler's messages, each that names a line (`file(12): ...` or `file:12:5: ...`) with that line of the source below it.
fn with_source_lines(log: &str, name: &str, text: &str, headers: &[(String, String)]) -> String {
    let mut out = String::new();
    for message in log.lines() {
        out.push_str(message);
        out.push('\n');
        let files = std::iter::once((name, text)).chain(headers.iter().map(|(n, t)| (&**n, &**t)));
        for (file, text) in files {
            let Some(rest) = message.find(file).map(|at| &message[at + file.len()..]) else { continue };
            let digits: String = rest.trim_start_matches(['(', ':']).chars().take_while(char::is_ascii_digit).collect();
            if let Some(line) = digits.parse::<usize>().ok().and_then(|n| text.lines().nth(n.checked_sub(1)?)) {
                out.push_str(&format!("    {file}:{digits} | {}\n", line.trim_end()));
            }
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_with_the_line_they_name() {
        let log = "a.cu(2): error: identifier \"y\" is undefined\nprelude.cuh:1:3: note: here\n1 error";
        let shown = with_source_lines(log, "a.cu", "int x;\nint z = y;", &[("prelude.cuh".into(), "first".into())]);
        assert!(shown.contains("    a.cu:2 | int z = y;\n"), "{shown}");
        assert!(shown.contains("    prelude.cuh:1 | first\n"), "{shown}");
    }

    #[test]
    fn architectures() {
        assert_eq!(architecture((8, 6), &[80, 86, 90]).unwrap(), "sm_86");
        assert_eq!(architecture((9, 0), &[80, 86, 90]).unwrap(), "sm_90a");
        assert!(architecture((12, 1), &[80, 90]).unwrap_err().contains("12.1"));
    }
}
