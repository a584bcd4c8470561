#!/usr/bin/env python3
"""Training steps of patchgpt beside those of other libraries, on this machine.

    python3 benches/peers/run.py --model S                      # PyTorch, everything below
    python3 benches/peers/run.py --model S --peers torch candle burn
    python3 benches/peers/run.py --model M --pairs 7 --variants eager-installed compile-tuned
    python3 benches/peers/run.py --device cuda --model 370M --positions 2048 --dtype bf16

Every variant of a peer is a process that makes one step when asked; ours is another. They take turns step by step (a pair), token and
patch regime alternating, who goes first alternating too, so that whatever else the machine does hits both. A figure is a median over
the pairs, with the smallest and the largest beside it. Work is the same: fresh batches, forward, backward, clipping, AdamW.

"Installed" is the peer as its package comes. "Tuned" sets glibc's allocator to keep its memory (MALLOC_MMAP_MAX_ and friends) and lets
MKL take its fastest path whatever the processor's maker (mkl_all_processors.c, preloaded). Writes benches/results/DATE-MODEL-DTYPE.json after
each variant, adding to what is there, and the table beside it as .md. Where there is no Rust, --steps names the program that was built elsewhere.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import sys

from common import HERE, RESULTS, TARGET, Worker, described, machine, ours_at, processor_seconds, python_with_torch, shell, spread, tuned_environment

REGIMES = ("token", "patch")
# Preset, positions of a sequence, sequences of a step; the large ones fit a card of 80 GB in one pass.
MODELS = {
    "S": ("bench-s", 256, 8),
    "M": ("bench-m", 512, 2),
    "124M": ("gpt2", 1024, 32),
    "370M": ("370m", 1024, 16),
    "780M": ("780m", 1024, 12),
    "1.3B": ("1.3b", 1024, 8),
}
# Variant of PyTorch: arguments, whether tuned.
TORCH = {
    "eager-k-losses-installed": (["--loss", "k"], False),
    "eager-installed": ([], False),
    "compile-installed": (["--mode", "compile"], False),
    "eager-tuned": ([], True),
    "compile-tuned": (["--mode", "compile"], True),
}
TORCH_ON_CARDS = {
    "eager": ([], False),
    "compile": (["--mode", "compile"], False),
    "compile-cudnn": (["--mode", "compile", "--attention", "cudnn"], False),
}
# bf16 products of the tensor cores on paper, dense: what model FLOPs are held against.
PAPER_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def measure(ours, theirs, pairs, warm_up):
    """Steps in turn; seconds, ratios and memory of both."""
    for _ in range(warm_up):
        for regime in REGIMES:
            ours.ask(regime), theirs.ask(regime)
    seconds = {side: {regime: [] for regime in REGIMES} for side in ("ours", "theirs")}
    before = processor_seconds((ours, theirs))
    for pair in range(pairs):
        for regime in REGIMES:
            turn = [("ours", ours), ("theirs", theirs)]
            for side, worker in turn if pair % 2 == 0 else reversed(turn):
                seconds[side][regime].append(worker.ask(regime)["seconds"])
    after = processor_seconds((ours, theirs))
    result = {"others_cores": (after[0] - before[0]) / (after[1] - before[1])}
    for side, worker in (("ours", ours), ("theirs", theirs)):
        tokens, taken = worker.about["tokens"], seconds[side]
        result[side] = {
            **worker.about,
            **worker.ask("memory"),
            **{regime: {"seconds": spread(taken[regime]), "tokens_per_second": tokens[regime] / statistics.median(taken[regime])} for regime in REGIMES},
            "patch_over_token": spread([tokens["patch"] / p / (tokens["token"] / t) for t, p in zip(taken["token"], taken["patch"])]),
        }
    result["speed_up"] = {
        regime: spread([b / a for a, b in zip(seconds["ours"][regime], seconds["theirs"][regime])]) for regime in REGIMES
    }
    return result


def table(results):
    """The results of one model and dtype as Markdown."""
    here = results["machine"]
    lines = [
        f"# Model {results['model']}, {results['dtype']}, {results['sequences']} x {results['positions']} positions, {results['device']}",
        "",
        described(results),
        f"Medians of interleaved pairs of steps, smallest to largest beside them; `{results['command']}`.",
        "",
        "| peer | version | regime | tokens/s, peer | tokens/s, patchgpt | patchgpt over peer | peak memory, peer / patchgpt |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in results["variants"].items():
        for regime in REGIMES:
            ratio = found["speed_up"][regime]
            memory = " / ".join(f"{found[side]['peak_memory_bytes'] / 1e9:.2f} GB" for side in ("theirs", "ours"))
            lines.append(
                f"| {name} | {found['theirs']['version']} | {regime} | {found['theirs'][regime]['tokens_per_second']:.0f} | "
                f"{found['ours'][regime]['tokens_per_second']:.0f} | {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}, "
                f"n = {ratio['n']}) | {memory} |"
            )
    paper = next((flops for name, flops in PAPER_FLOPS.items() if name in here.get("card", "")), None)
    if paper:
        lines += ["", f"Model FLOPs over {paper / 1e12:.0f} TFLOP/s on paper (MFU), of a position 6 N + 6 L C T: N the matrices and the head, L layers of width C, T positions of a sequence:", ""]
        for name, found in results["variants"].items():
            for regime in REGIMES:
                shares = (found["ours"]["model_flops"] / found[side][regime]["seconds"]["median"] / paper for side in ("ours", "theirs"))
                lines.append("- {}, {}: patchgpt {:.1%}, peer {:.1%}".format(name, regime, *shares))
    others = ", ".join(f"{name} {found['others_cores']:.2f}" for name, found in results["variants"].items())
    lines += ["", f"Cores that other processes kept busy meanwhile, on average: {others}."]
    lines += ["", "Patch over token regime, tokens/s, steps alternating in one process:", ""]
    for name, found in results["variants"].items():
        both = [(who, found[side]["patch_over_token"]) for who, side in (("patchgpt", "ours"), (name, "theirs"))]
        lines.append("- " + "; ".join(f"{who} {r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for who, r in both))
    return "\n".join(lines) + "\n"


def peers(args):
    """Name, command and environment of every variant that was asked for."""
    if "torch" in args.peers:
        python = python_with_torch(args.venv)
        device = "cpu" if args.device == "cpu" else "cuda"
        for name, (options, tuned) in (TORCH if args.device == "cpu" else TORCH_ON_CARDS).items():
            if args.variants and name not in args.variants:
                continue
            command = [python, HERE / "torch_steps.py", args.model, args.dtype, args.positions, args.sequences]
            command += ["--device", device, "--threads", args.threads, *options]
            yield f"PyTorch {name}", command, tuned_environment() if tuned else {}
    for name in ("candle", "burn"):
        if name in args.peers:
            if (args.model, args.dtype, args.device) != ("S", "f32", "cpu"):
                print(f"{name} runs model S in f32 on the CPU only: left out", file=sys.stderr)
                continue
            manifest = HERE / "rust" / "Cargo.toml"
            shell("cargo", "build", "--release", "--manifest-path", manifest, "--target-dir", TARGET / "peers", "--features", name, "--bin", f"{name}_steps")
            yield name, [TARGET / "peers" / "release" / f"{name}_steps"], {"RAYON_NUM_THREADS": str(args.threads)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="S")
    parser.add_argument("--positions", type=int, help="of a sequence; the model's own without it")
    parser.add_argument("--sequences", type=int, help="of a step, in one pass; without it as many as make the step that the model has by itself")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pairs", type=int, default=7, help="steps of each regime and side; at least 7 for a claim")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--peers", nargs="+", choices=["torch", "candle", "burn"], default=["torch"])
    parser.add_argument("--variants", nargs="+", choices=[*TORCH, *TORCH_ON_CARDS], help="of PyTorch; all of the device without it")
    parser.add_argument("--steps", type=pathlib.Path, help="our program, built before; cargo builds it without this")
    parser.add_argument("--venv", type=pathlib.Path, default=TARGET / "peers" / "venv", help="made if it is not there")
    args = parser.parse_args()

    preset, positions, sequences = MODELS[args.model]
    args.positions = args.positions or positions
    args.sequences = args.sequences or max(1, positions * sequences // args.positions)
    own = ours_at(args.steps, "steps")
    date = datetime.date.today().isoformat()
    # The model's own size on the CPU goes by the model's name alone.
    size = "" if (args.positions, args.device) == (positions, "cpu") else f"-{args.positions}-{args.device}"
    path = RESULTS / f"{date}-{args.model}{size}-{args.dtype}.json"
    RESULTS.mkdir(exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {}
    about = {"date": date, "model": args.model, "dtype": args.dtype, "threads": args.threads, "device": args.device, "positions": args.positions}
    about |= {"sequences": args.sequences, "machine": machine(args.device)}
    command = f"python3 benches/peers/run.py --device {args.device} --model {args.model} --positions {args.positions} --sequences {args.sequences} "
    command += f"--dtype {args.dtype} --pairs {args.pairs} --peers {' '.join(args.peers)}"
    settings = [f"model.preset={preset}", f"model.max_positions={args.positions}", f"train.seq_len={args.positions}", f"train.batch_size={args.sequences}"]
    settings += [f"train.micro_batch={args.sequences}", "train.patch_batch=positions", "train.patch_context=positions"]
    settings += [f"device.device={args.device}", f"device.dtype={args.dtype}", f"device.threads={args.threads}"]
    results = {**about, "command": command, "variants": results.get("variants", {})}
    for name, command, environment in peers(args):
        print(f"{name}: {args.pairs} pairs", file=sys.stderr, flush=True)
        ours = Worker([own, *settings])
        theirs = Worker(command, environment)
        results["variants"][name] = measure(ours, theirs, args.pairs, args.warm_up)
        ours.close(), theirs.close()
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
