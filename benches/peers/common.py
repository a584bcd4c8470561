"""What the comparisons with other libraries share: processes that work when asked, the machine, PyTorch's environment."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = HERE.parent / "results"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# Seconds between two turns.
REST = 0.02
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "268435456",
}


def shell(*command, **options):
    print("+", " ".join(map(str, command)), file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, **options)


class Worker:
    """A process that makes steps when asked, one line each way."""

    def __init__(self, command, environment=None):
        env = {**os.environ, **(environment or {})}
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, what):
        # The peer's threads wait for more work in a loop, for milliseconds: on the cores that this one needs.
        time.sleep(REST)
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def processor_seconds(workers):
    """Processor time of all processes so far, less that of the workers: what others do; the clock beside it."""
    ticks = os.sysconf("SC_CLK_TCK")
    with open("/proc/stat") as stat:
        user, nice, system, _, _, irq, softirq = map(int, stat.readline().split()[1:8])
    own = 0
    for worker in workers:
        with open(f"/proc/{worker.process.pid}/stat") as stat:
            own += sum(map(int, stat.read().rsplit(")", 1)[1].split()[11:13]))
    return (user + nice + system + irq + softirq - own) / ticks, time.monotonic()


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def machine(device="cpu"):
    """What it was measured on; of a card also its name, driver and memory, as nvidia-smi tells them."""

    def line(path, name):
        try:
            with open(path) as file:
                return next(row.split(":", 1)[1].strip() for row in file if row.startswith(name))
        except (OSError, StopIteration):
            return "unknown"

    flags = line("/proc/cpuinfo", "flags").split()
    known = [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd") if flag in flags]
    card = {}
    if device == "cuda":
        asked = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"], capture_output=True, text=True)
        card = {"card": asked.stdout.strip().splitlines()[0] if asked.stdout.strip() else "unknown"}
    return {
        **card,
        "processor": line("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": known,
        "memory": line("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_before": os.getloadavg()[0],
    }


def described(results):
    """The line of a table that says when and on what it was measured."""
    here = results["machine"]
    card = f"{here['card']}; " if "card" in here else ""
    return f"{results['date']}, {card}{here['processor']}, {here['cores']} cores ({', '.join(here['instructions'])}), {here['memory']}, {here['system']}, {results['threads']} threads."


def ours_at(path, name):
    """Our program: where it was built before, or built now."""
    if path:
        return path
    shell("cargo", "build", "--release", "--manifest-path", ROOT / "Cargo.toml", "--workspace", "--bin", name)
    return TARGET / "release" / name


def python_with_torch(venv):
    """The Python that has PyTorch: this one, if it does, else that of a virtual environment, made if need be."""
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0:
        return sys.executable
    python = venv / "bin" / "python"
    if not python.exists():
        shell(sys.executable, "-m", "venv", venv)
    if subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0:
        shell(python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt")
    return python


def tuned_environment():
    """The allocator's settings, and MKL's path where a C compiler is at hand."""
    library = TARGET / "peers" / "mkl_all_processors.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    try:
        shell("cc", "-shared", "-fPIC", "-o", library, HERE / "mkl_all_processors.c")
        return {**ALLOCATOR, "LD_PRELOAD": str(library)}
    except (OSError, subprocess.CalledProcessError):
        print("no C compiler: MKL keeps the path it chooses by itself", file=sys.stderr)
        return ALLOCATOR
