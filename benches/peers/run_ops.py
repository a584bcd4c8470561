#!/usr/bin/env python3
"""Single ops of patchgpt beside PyTorch's, on this machine.

    python3 benches/peers/run_ops.py                  # all ops, all variants, in f32 on the CPU
    python3 benches/peers/run_ops.py --ops attention  # those whose name contains "attention"
    python3 benches/peers/run_ops.py --device cuda --dtype bf16 --kernels attention=sm90 attention=sm80

As in run.py two processes take turns, call by call, and a ratio is the median over the pairs; an op's peer is the fastest of PyTorch's variants.
What an op computes is computed again after it was timed and must have the same bits. With --kernels the ops of a family are timed once more for each of its kernels.
Writes benches/results/DATE-ops-DTYPE.json, with the device's name where that is a card, and the table beside it as .md; of some ops only it prints the table.
"""

import argparse
import datetime
import json
import pathlib
import statistics
import sys

from common import HERE, RESULTS, TARGET, Worker, described, machine, ours_at, processor_seconds, python_with_torch, spread, tuned_environment

PASSES = {"forward": "forward", "both": "forward and backward"}
# Arguments and whether tuned.
VARIANTS = {"eager-installed": ([], False), "eager-tuned": ([], True), "compile-tuned": (["--mode", "compile"], True)}
VARIANTS_ON_CARDS = {
    "eager": ([], False),
    "compile": (["--mode", "compile"], False),
    "flash": (["--attention", "flash"], False),
    "cudnn": (["--attention", "cudnn"], False),
}

# A part of the names of the ops that a family of kernels computes, where that is not the family's own name.
OPS_OF = {"cross_entropy": "head and loss", "rms_norm": "RMSNorm", "layer_norm": "LayerNorm", "adamw": "AdamW"}


def measure(ours, theirs, asked, pairs):
    """Calls in turn: seconds of both, and theirs over ours pair by pair."""
    seconds = {"ours": [], "theirs": []}
    for _ in range(2):
        ours.ask(asked), theirs.ask(asked)
    for pair in range(pairs):
        turn = [("ours", ours), ("theirs", theirs)]
        for side, worker in turn if pair % 2 == 0 else reversed(turn):
            seconds[side].append(worker.ask(asked)["seconds"])
    name, run = asked.split("\t")
    if not ours.ask(f"{name}\tcheck")["same"]:
        raise SystemExit(f"{name}: computed again after it was timed, it has other bits")
    return {
        **{side: statistics.median(taken) for side, taken in seconds.items()},
        "p95": {side: sorted(taken)[min(len(taken) * 95 // 100, len(taken) - 1)] for side, taken in seconds.items()},
        "work": ours.ask(f"{name}\twork {run}"),
        "speed_up": spread([b / a for a, b in zip(seconds["ours"], seconds["theirs"])]),
    }


def table(results):
    limits = results["limits"]
    ceilings = ""
    if limits["flops_per_second"]:
        ceilings = " Ceilings measured at the start: {:.3g} TFLOP/s in a large product or chain of multiply-adds, {:.4g} GB/s in a large copy.".format(
            limits["flops_per_second"] / 1e12, limits["bytes_per_second"] / 1e9
        )
    lines = [
        f"# Single ops, {results['dtype']}, {results['device']}",
        "",
        f"{described(results)} PyTorch {results['version']}.",
        f"Medians over interleaved pairs of calls, smallest to largest beside them; `{results['command']}`.{ceilings}",
        "Time of the ratio's PyTorch is that of the variant; ratios above 1 say that patchgpt is faster. The roofline's share is the least time under the ceilings over the time taken.",
        "",
        "| op | pass | patchgpt, ms (p95) | TFLOP/s | GB/s | share of the roofline | " + " | ".join(f"PyTorch {name}, ms | ratio" for name in results["variants"]) + " |",
        "| --- | --- | ---: | ---: | ---: | ---: |" + " ---: | --- |" * len(results["variants"]),
    ]
    measured = {asked: None for found in results["variants"].values() for asked in found}
    for asked in measured:
        name, run = asked.split("\t")
        cells = []
        having = [found[asked] for found in results["variants"].values() if asked in found]
        for found in results["variants"].values():
            if asked in found:
                ratio = found[asked]["speed_up"]
                cells += [f"{1e3 * found[asked]['theirs']:.2f}", f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"]
            else:
                cells += ["", ""]
        ours, p95, work = statistics.median(found["ours"] for found in having), max(found["p95"]["ours"] for found in having), having[0]["work"]
        share = ""
        if limits["flops_per_second"]:
            share = f"{max(work['flops'] / limits['flops_per_second'], work['bytes'] / limits['bytes_per_second']) / ours:.0%}"
        lines.append(
            f"| {name} | {PASSES[run]} | {1e3 * ours:.2f} ({1e3 * p95:.2f}) | {work['flops'] / ours / 1e12:.3g} | {work['bytes'] / ours / 1e9:.4g} | {share} | " + " | ".join(cells) + " |"
        )
    lines += ["", f"Cores that other processes kept busy meanwhile, on average: {results['others_cores']:.2f}."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=machine()["cores"])
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--ops", default="", help="only those whose name contains this")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, *VARIANTS_ON_CARDS], help="of PyTorch; all of the device without it")
    parser.add_argument("--kernels", nargs="+", default=[], metavar="FAMILY=KERNEL", help="of ours, beside the one that is chosen by itself")
    parser.add_argument("--venv", type=pathlib.Path, default=TARGET / "peers" / "venv", help="made if it is not there")
    parser.add_argument("--program", type=pathlib.Path, help="ours, built before; cargo builds it without this")
    args = parser.parse_args()

    program, python = ours_at(args.program, "ops"), python_with_torch(args.venv)
    variants = VARIANTS if args.device == "cpu" else VARIANTS_ON_CARDS
    date = datetime.date.today().isoformat()
    command = f"python3 benches/peers/run_ops.py --device {args.device} --dtype {args.dtype} --pairs {args.pairs}" + (f" --ops '{args.ops}'" if args.ops else "")
    results = {"date": date, "device": args.device, "dtype": args.dtype, "threads": args.threads, "machine": machine(args.device), "command": command, "variants": {}}
    others = []
    for variant in args.variants or variants:
        options, tuned = variants[variant]
        theirs = Worker([python, HERE / "torch_ops.py", args.dtype, "--device", args.device, "--threads", args.threads, *options], tuned_environment() if tuned else {})
        results["version"] = theirs.about["version"]
        found = results["variants"][variant] = {}
        for kernel in ["", *args.kernels]:
            settings = [f"device.device={args.device}", f"device.dtype={args.dtype}", f"device.threads={args.threads}"]
            ours = Worker([program, *settings, *([f"device.kernel={kernel}"] if kernel else [])])
            results["limits"] = {name: ours.about[name] for name in ("flops_per_second", "bytes_per_second")}
            before = processor_seconds((ours, theirs))
            family = kernel.split("=")[0]
            computed = OPS_OF.get(family, family)
            for name in filter(lambda name: args.ops in name and computed in name, ours.about["ops"]):
                # A kernel of PyTorch's attention changes nothing else, and on a card compiling does not change which one it is.
                attention = name.startswith("attention")
                if attention != ("--attention" in options) and (attention and variant == "compile" or "--attention" in options):
                    continue
                for run in ["forward"] if name.startswith("AdamW") else PASSES:
                    print(f"{variant}: {name} {kernel}, {PASSES[run]}", file=sys.stderr, flush=True)
                    measured = measure(ours, theirs, f"{name}\t{run}", args.pairs)
                    found[f"{name}{f' by {kernel}' if kernel else ''}\t{run}"] = measured
            after = processor_seconds((ours, theirs))
            others.append((after[0] - before[0]) / (after[1] - before[1]))
            ours.close()
        theirs.close()
    results["others_cores"] = statistics.mean(others)
    if not args.ops:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{date}-ops{'' if args.device == 'cpu' else f'-{args.device}'}-{args.dtype}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
