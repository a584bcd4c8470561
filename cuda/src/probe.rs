//! What of CUDA this machine has, found out without a panic and without a context.
//!
//! cudarc panics when a library or one of its symbols is missing; so every library is looked for, and every symbol this crate calls
//! is looked up, before cudarc touches it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_NOW};
use patchgpt_tensor::{Error, Result};

use crate::error::{backend, describe};

/// The oldest version of CUDA whose driver has every call of this crate.
const OLDEST_DRIVER: (i32, i32) = (12, 0);

/// A library of CUDA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// `libcuda`, which comes with NVIDIA's kernel driver.
    Driver,
    /// `libnvrtc`, the compiler.
    Nvrtc,
    /// `libcublas`, matrix products.
    Cublas,
    /// `libcublasLt`, matrix products with what follows them.
    CublasLt,
}

impl Library {
    /// All of them.
    pub const ALL: [Library; 4] = [Library::Driver, Library::Nvrtc, Library::Cublas, Library::CublasLt];

    fn stem(self) -> &'static str {
        match self {
            Library::Driver => "cuda",
            Library::Nvrtc => "nvrtc",
            Library::Cublas => "cublas",
            Library::CublasLt => "cublasLt",
        }
    }

    /// What to do when it is missing.
    pub fn advice(self) -> &'static str {
        match self {
            Library::Driver => {
                "install NVIDIA's driver, 525 or newer (on Debian and Ubuntu the package nvidia-driver); in a container start it with --gpus all"
            }
            Library::Nvrtc => {
                "install it with `pip install nvidia-cuda-nvrtc-cu12` (driver 525 to 575) or `pip install nvidia-cuda-nvrtc` (driver 580 and newer), or the CUDA toolkit, and set PATCHGPT_CUDA_LIBRARIES to the folder that holds libnvrtc.so.* if it is not found"
            }
            Library::Cublas => {
                "install it with `pip install nvidia-cublas-cu12` (driver 525 to 575) or `pip install nvidia-cublas` (driver 580 and newer), or the CUDA toolkit, and set PATCHGPT_CUDA_LIBRARIES to the folder that holds libcublas.so.* if it is not found"
            }
            Library::CublasLt => {
                "it comes with libcublas: install both with `pip install nvidia-cublas-cu12` (driver 525 to 575) or `pip install nvidia-cublas` (driver 580 and newer), or the CUDA toolkit, and set PATCHGPT_CUDA_LIBRARIES to the folder that holds libcublasLt.so.* if it is not found"
            }
        }
    }

    /// The functions of the library that this crate calls.
    fn symbols(self) -> &'static [&'static str] {
        match self {
            Library::Driver => &[
                "cuInit",
                "cuDriverGetVersion",
                "cuDeviceGetCount",
                "cuDeviceGet",
                "cuDeviceGetName",
                "cuDeviceTotalMem_v2",
                "cuDeviceGetAttribute",
                "cuDeviceGetDefaultMemPool",
                "cuMemPoolSetAttribute",
                "cuMemPoolTrimTo",
                "cuDevicePrimaryCtxRetain",
                "cuDevicePrimaryCtxRelease_v2",
                "cuCtxSetCurrent",
                "cuMemAllocAsync",
                "cuMemFreeAsync",
                "cuMemGetInfo_v2",
                "cuMemAllocHost_v2",
                "cuMemFreeHost",
                "cuMemcpyHtoDAsync_v2",
                "cuMemcpyDtoHAsync_v2",
                "cuMemcpyDtoDAsync_v2",
                "cuMemsetD8Async",
                "cuStreamCreate",
                "cuStreamDestroy_v2",
                "cuStreamSynchronize",
                "cuStreamBeginCapture_v2",
                "cuStreamEndCapture",
                "cuGraphGetNodes",
                "cuGraphInstantiateWithFlags",
                "cuGraphLaunch",
                "cuGraphDestroy",
                "cuGraphExecDestroy",
                "cuEventCreate",
                "cuEventRecord",
                "cuEventQuery",
                "cuEventSynchronize",
                "cuEventDestroy_v2",
                "cuEventElapsedTime",
                "cuModuleLoadData",
                "cuModuleUnload",
                "cuModuleGetFunction",
                "cuFuncGetAttribute",
                "cuFuncSetAttribute",
                "cuLaunchKernel",
                "cuGetErrorName",
                "cuGetErrorString",
            ],
            Library::Nvrtc => &[
                "nvrtcVersion",
                "nvrtcCreateProgram",
                "nvrtcCompileProgram",
                "nvrtcDestroyProgram",
                "nvrtcGetProgramLogSize",
                "nvrtcGetProgramLog",
                "nvrtcGetCUBINSize",
                "nvrtcGetCUBIN",
                "nvrtcGetErrorString",
                "nvrtcGetNumSupportedArchs",
                "nvrtcGetSupportedArchs",
            ],
            Library::Cublas => &[
                "cublasCreate_v2",
                "cublasDestroy_v2",
                "cublasGetVersion_v2",
                "cublasSetStream_v2",
                "cublasSetWorkspace_v2",
                "cublasSetMathMode",
                "cublasGemmStridedBatchedEx",
            ],
            Library::CublasLt => &[
                "cublasLtGetVersion",
                "cublasLtCreate",
                "cublasLtDestroy",
                "cublasLtMatmulDescCreate",
                "cublasLtMatmulDescDestroy",
                "cublasLtMatmulDescSetAttribute",
                "cublasLtMatrixLayoutCreate",
                "cublasLtMatrixLayoutDestroy",
                "cublasLtMatrixLayoutSetAttribute",
                "cublasLtMatmulPreferenceCreate",
                "cublasLtMatmulPreferenceDestroy",
                "cublasLtMatmulPreferenceSetAttribute",
                "cublasLtMatmulAlgoGetHeuristic",
                "cublasLtMatmulAlgoCheck",
                "cublasLtMatmul",
            ],
        }
    }

    /// Whether cudarc will find it.
    fn present(self) -> bool {
        // SAFETY: opens and closes a library; its initialisers are NVIDIA's or the emulator's.
        unsafe {
            match self {
                Library::Driver => sys::is_culib_present(),
                Library::Nvrtc => cudarc::nvrtc::sys::is_culib_present(),
                Library::Cublas => cudarc::cublas::sys::is_culib_present(),
                Library::CublasLt => cudarc::cublaslt::sys::is_culib_present(),
            }
        }
    }

    /// The first symbol that is missing, of a library that is present.
    fn missing_symbol(self) -> Option<&'static str> {
        // SAFETY: `culib` panics only if the library is not present; symbols are looked up, not called.
        unsafe {
            let library = match self {
                Library::Driver => sys::culib(),
                Library::Nvrtc => cudarc::nvrtc::sys::culib(),
                Library::Cublas => cudarc::cublas::sys::culib(),
                Library::CublasLt => cudarc::cublaslt::sys::culib(),
            };
            self.symbols().iter().copied().find(|name| library.get::<unsafe extern "C" fn()>(name.as_bytes()).is_err())
        }
    }

    /// Makes sure that the library can be called; looks in the places where pip and the toolkit put it.
    ///
    /// # Errors
    /// A library that is missing or lacks a function, with what to do.
    pub fn require(self) -> Result<()> {
        static FOUND: [OnceLock<()>; Library::ALL.len()] = [const { OnceLock::new() }; Library::ALL.len()];
        if FOUND[self as usize].get().is_some() {
            return Ok(());
        }
        if !self.present() {
            for folder in library_folders() {
                preload(&folder, self.stem());
            }
        }
        let missing = |message: String| Err(backend("cuda", message));
        if !self.present() {
            return missing(format!("{self} is missing: {}", self.advice()));
        }
        if let Some(name) = self.missing_symbol() {
            return missing(format!("{self} has no function {name}, so it is too old: {}", self.advice()));
        }
        FOUND[self as usize].get_or_init(|| ());
        Ok(())
    }
}

impl std::fmt::Display for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "lib{}", self.stem())
    }
}

/// Folders that may hold NVIDIA's libraries: those named in `PATCHGPT_CUDA_LIBRARIES`, the toolkit's, those of pip in the active or a user's environment.
fn library_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Some(named) = std::env::var_os("PATCHGPT_CUDA_LIBRARIES") {
        folders.extend(std::env::split_paths(&named));
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = std::env::var_os(variable) {
            folders.push(Path::new(&home).join("lib64"));
        }
    }
    folders.push("/usr/local/cuda/lib64".into());
    let mut environments: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .iter()
        .filter_map(std::env::var_os)
        .map(|root| Path::new(&root).join("lib"))
        .collect();
    environments.extend(std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/lib")));
    environments.extend(["/usr/local/lib", "/usr/lib"].map(PathBuf::from));
    let children = |folder: &Path| -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> =
            std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        all.sort();
        all
    };
    for lib in environments {
        for python in children(&lib).into_iter().filter(|p| p.to_string_lossy().contains("python3")) {
            for packages in ["site-packages", "dist-packages"] {
                folders.extend(children(&python.join(packages).join("nvidia")).into_iter().map(|p| p.join("lib")));
            }
        }
    }
    folders
}

/// Loads `lib<stem>.so*` of a folder, if it is there, for the whole process and for good; cudarc then finds it by name.
fn preload(folder: &Path, stem: &str) {
    let prefix = format!("lib{stem}.so");
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            // SAFETY: a library of NVIDIA's by its name, in a folder where they are installed.
            if let Ok(handle) = unsafe { Handle::open(Some(entry.path()), RTLD_NOW | RTLD_GLOBAL) } {
                std::mem::forget(handle);
            }
        }
    }
}

/// A device as the driver describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// Its number for `cuda:N`.
    pub ordinal: usize,
    /// The card's name.
    pub name: String,
    /// Bytes of memory.
    pub memory: usize,
    /// Compute capability, such as (9, 0).
    pub compute_capability: (i32, i32),
    /// Number of multiprocessors.
    pub multiprocessors: usize,
}

/// What of CUDA this machine has.
#[derive(Debug)]
pub struct Probe {
    /// The devices, or why there are none and what to do.
    pub devices: Result<Vec<DeviceInfo>>,
    /// The newest version of CUDA that the driver serves, such as (13, 0).
    pub driver: Option<(i32, i32)>,
    /// NVRTC's version, or what is missing.
    pub nvrtc: Result<(i32, i32)>,
    /// cuBLAS' version (a number such as 130100), or what is missing.
    pub cublas: Result<i32>,
    /// The same of cuBLASLt.
    pub cublas_lt: Result<usize>,
}

/// Looks for CUDA's libraries and devices. Never panics and creates no context.
pub fn probe() -> Probe {
    let driver = Library::Driver.require().ok().and_then(|()| driver_version());
    let nvrtc = Library::Nvrtc.require().and_then(|()| nvrtc_version());
    let cublas = Library::Cublas.require().and_then(|()| {
        let mut version = 0;
        // SAFETY: the function is there; it needs no handle to tell the version.
        let status = unsafe { cudarc::cublas::sys::cublasGetVersion_v2(std::ptr::null_mut(), &mut version) };
        match status {
            cudarc::cublas::sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(version),
            other => Err(backend("cuda", format!("libcublas does not tell its version: {other:?}"))),
        }
    });
    Probe { devices: devices(), driver, nvrtc, cublas, cublas_lt: cublas_lt_version() }
}

/// cuBLASLt's version, a number such as 130100.
///
/// # Errors
/// A library that is missing or too old.
pub(crate) fn cublas_lt_version() -> Result<usize> {
    Library::CublasLt.require()?;
    // SAFETY: the function is there; it takes nothing.
    Ok(unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() })
}

/// The newest version of CUDA that the driver serves; the library must be there.
pub(crate) fn driver_version() -> Option<(i32, i32)> {
    let mut version = 0;
    // SAFETY: the function is there, and the pointer is valid.
    let result = unsafe { sys::cuDriverGetVersion(&mut version) };
    (result == CUresult::CUDA_SUCCESS).then_some((version / 1000, version % 1000 / 10))
}

/// NVRTC's version; the library must be there.
pub(crate) fn nvrtc_version() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the function is there, and the pointers are valid.
    let result = unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
    match result {
        cudarc::nvrtc::sys::nvrtcResult::NVRTC_SUCCESS => Ok((major, minor)),
        other => Err(backend("cuda", format!("libnvrtc does not tell its version: {other:?}"))),
    }
}

/// Initialises the driver and lists its devices.
///
/// # Errors
/// No driver, one that is too old or does not start, no device.
pub(crate) fn devices() -> Result<Vec<DeviceInfo>> {
    Library::Driver.require()?;
    let failed = |what: &str, result: CUresult| -> Error {
        backend("cuda", format!("{what} failed: {}; {}", describe(result), hint(result)))
    };
    // SAFETY: the function is there; it may be called any number of times.
    let result = unsafe { sys::cuInit(0) };
    if result != CUresult::CUDA_SUCCESS {
        return Err(failed("starting the driver", result));
    }
    match driver_version() {
        Some(version) if version >= OLDEST_DRIVER => {}
        version => {
            let (major, minor) = version.unwrap_or_default();
            let advice = Library::Driver.advice();
            let needed = "12.0 or newer is needed";
            return Err(backend("cuda", format!("the driver serves CUDA {major}.{minor}; {needed}: {advice}")));
        }
    }
    let mut count = 0;
    // SAFETY: the driver is initialised and the pointer valid.
    let result = unsafe { sys::cuDeviceGetCount(&mut count) };
    if result != CUresult::CUDA_SUCCESS {
        return Err(failed("counting the devices", result));
    }
    (0..count).map(|ordinal| device_info(ordinal).map_err(|result| failed("describing a device", result))).collect()
}

fn hint(result: CUresult) -> &'static str {
    match result {
        CUresult::CUDA_ERROR_NO_DEVICE => {
            "the driver sees no card: look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES; in a container start it with --gpus all"
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "kernel driver and libcuda are of different versions: restart the machine, or install matching ones"
        }
        _ => "`nvidia-smi` tells whether the driver itself works",
    }
}

/// An attribute of a device.
pub(crate) fn attribute(device: sys::CUdevice, which: CUdevice_attribute) -> std::result::Result<i32, CUresult> {
    let mut value = 0;
    // SAFETY: the driver is initialised, the device is one of its devices, the pointer is valid.
    match unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) } {
        CUresult::CUDA_SUCCESS => Ok(value),
        other => Err(other),
    }
}

fn device_info(ordinal: i32) -> std::result::Result<DeviceInfo, CUresult> {
    let ok = |result: CUresult| if result == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(result) };
    let (mut device, mut memory, mut name) = (0, 0usize, [0u8; 256]);
    // SAFETY: the driver is initialised; pointers are valid, and the name's length is passed, its end included.
    unsafe {
        ok(sys::cuDeviceGet(&mut device, ordinal))?;
        ok(sys::cuDeviceTotalMem_v2(&mut memory, device))?;
        ok(sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device))?;
    }
    let end = name.iter().position(|&c| c == 0).unwrap_or(name.len());
    Ok(DeviceInfo {
        ordinal: ordinal as usize,
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        memory,
        compute_capability: (
            attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
    })
}
