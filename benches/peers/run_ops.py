#!/usr/bin/env python3
"""Single ops of patchgpt beside PyTorch's, on this machine, in f32.

    python3 benches/peers/run_ops.py                  # all ops, all variants
    python3 benches/peers/run_ops.py --ops attention  # those whose name contains "attention"

As in run.py two processes take turns, call by call, and a ratio is the median over the pairs; an op's peer is the fastest of PyTorch's variants.
Writes benches/results/DATE-ops-f32.json and the table beside it as .md.
"""

import argparse
import datetime
import json
import pathlib
import statistics
import sys

from common import HERE, RESULTS, ROOT, TARGET, Worker, machine, processor_seconds, python_with_torch, shell, spread, tuned_environment

PASSES = {"forward": "forward", "both": "forward and backward"}
# Mode and whether tuned.
VARIANTS = {"eager-installed": ("eager", False), "eager-tuned": ("eager", True), "compile-tuned": ("compile", True)}


def measure(ours, theirs, asked, pairs):
    """Calls in turn: seconds of both, and theirs over ours pair by pair."""
    seconds = {"ours": [], "theirs": []}
    for _ in range(2):
        ours.ask(asked), theirs.ask(asked)
    for pair in range(pairs):
        turn = [("ours", ours), ("theirs", theirs)]
        for side, worker in turn if pair % 2 == 0 else reversed(turn):
            seconds[side].append(worker.ask(asked)["seconds"])
    return {
        **{side: statistics.median(taken) for side, taken in seconds.items()},
        "speed_up": spread([b / a for a, b in zip(seconds["ours"], seconds["theirs"])]),
    }


def table(results):
    here = results["machine"]
    lines = [
        f"# Single ops, f32, {results['threads']} threads",
        "",
        f"{results['date']}, {here['processor']}, {here['cores']} cores ({', '.join(here['instructions'])}), {here['memory']}, {here['system']}; PyTorch {results['version']}.",
        f"Medians over interleaved pairs of calls, smallest to largest beside them; `{results['command']}`.",
        "Time of the ratio's PyTorch is that of the variant; ratios above 1 say that patchgpt is faster.",
        "",
        "| op | pass | patchgpt, ms | " + " | ".join(f"PyTorch {name}, ms | ratio" for name in results["variants"]) + " |",
        "| --- | --- | ---: |" + " ---: | --- |" * len(results["variants"]),
    ]
    first = next(iter(results["variants"].values()))
    for asked in first:
        name, run = asked.split("\t")
        cells = []
        for found in results["variants"].values():
            if asked in found:
                ratio = found[asked]["speed_up"]
                cells += [f"{1e3 * found[asked]['theirs']:.2f}", f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"]
            else:
                cells += ["", ""]
        ours = statistics.median(found[asked]["ours"] for found in results["variants"].values() if asked in found)
        lines.append(f"| {name} | {PASSES[run]} | {1e3 * ours:.2f} | " + " | ".join(cells) + " |")
    lines += ["", f"Cores that other processes kept busy meanwhile, on average: {results['others_cores']:.2f}."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=machine()["cores"])
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--ops", default="", help="only those whose name contains this")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--venv", type=pathlib.Path, default=TARGET / "peers" / "venv", help="made if it is not there")
    args = parser.parse_args()

    shell("cargo", "build", "--release", "--manifest-path", ROOT / "Cargo.toml", "--workspace", "--bin", "ops")
    python = python_with_torch(args.venv)
    date = datetime.date.today().isoformat()
    command = f"python3 benches/peers/run_ops.py --pairs {args.pairs}" + (f" --ops '{args.ops}'" if args.ops else "")
    results = {"date": date, "threads": args.threads, "machine": machine(), "command": command, "variants": {}}
    others = []
    for variant in args.variants:
        mode, tuned = VARIANTS[variant]
        ours = Worker([TARGET / "release" / "ops", "f32", args.threads])
        theirs = Worker([python, HERE / "torch_ops.py", args.threads, "--mode", mode], tuned_environment() if tuned else {})
        results["version"] = theirs.about["version"]
        before = processor_seconds((ours, theirs))
        found = results["variants"][variant] = {}
        for name in filter(lambda name: args.ops in name, ours.about["ops"]):
            for run in PASSES:
                print(f"{variant}: {name}, {PASSES[run]}", file=sys.stderr, flush=True)
                found[f"{name}\t{run}"] = measure(ours, theirs, f"{name}\t{run}", args.pairs)
        after = processor_seconds((ours, theirs))
        others.append((after[0] - before[0]) / (after[1] - before[1]))
        ours.close(), theirs.close()
    results["others_cores"] = statistics.mean(others)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{date}-ops-f32.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
