//! The flags that say where and in what type a step is computed, shared by all commands that make or plan training steps.

use clap::Args;

/// Device, type, threads and kernels.
#[derive(Args, Debug)]
pub(crate) struct MachineChoice {
    /// Where to compute: cpu, cuda, or cuda:emulated, which runs the CUDA kernels on the CPU to find mistakes
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    device: Option<String>,

    /// Type of weights and activations: f32, bf16 (sums, master weights and moments stay f32), or f64 to tell rounding from a mistake
    #[arg(long, value_name = "TYPE", help_heading = "Machine")]
    dtype: Option<String>,

    /// Threads, one per core without it; results do not depend on it
    #[arg(long, value_name = "N", help_heading = "Machine")]
    threads: Option<String>,

    /// Variants of CUDA kernels, such as attention=sm80 or gemm=blas, several with commas between; without it the best that the device has
    #[arg(long, value_name = "FAMILY=VARIANT", help_heading = "Machine")]
    kernel: Option<String>,

    /// Make each training step on a card as it is, instead of recording it once as a CUDA graph and replaying that: slower, the same bits, for finding mistakes
    #[arg(long, help_heading = "Machine")]
    no_graph: bool,

    /// Find the algorithm of each product on a card by timing those that cuBLASLt offers; a run keeps the choices in gemm.json, since they decide the last bits
    #[arg(long, help_heading = "Machine")]
    gemm_search: bool,
}

impl MachineChoice {
    /// Flag, key and value of every flag that was given.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        [
            ("--device", "device.device", self.device.as_deref()),
            ("--dtype", "device.dtype", self.dtype.as_deref()),
            ("--threads", "device.threads", self.threads.as_deref()),
            ("--kernel", "device.kernel", self.kernel.as_deref()),
            ("--no-graph", "device.graph", self.no_graph.then_some("false")),
            ("--gemm-search", "device.gemm_search", self.gemm_search.then_some("true")),
        ]
        .into_iter()
        .filter_map(|(flag, key, value)| Some((flag, key, value?)))
    }
}
