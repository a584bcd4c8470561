"""Holds what `patchgpt inspect` wrote against transformers: logits, loss and the gradient of every parameter.

    patchgpt inspect --model DIR --tokens 1,2,3,... [--patch-size K] --out FILE
    python check_inspect.py DIR FILE [--tolerance 1e-3]

The tokens and the patch size stand in the file's metadata. A position reads the mean of K embeddings and is scored by the mean of K ordinary
losses. Differences are relative to the largest magnitude of each tensor. transformers computes in float64 from the folder's weights, whatever
their type, its RMSNorm and rotation included, and so is the loss: transformers' own casts the logits to float32, which moves gradients of a
trained model by 1e-3. At K = 1 the two losses must still agree as numbers. Exit code 1 on a failure.

Text is the better probe of a trained model. Some sequences of random tokens hold a position at which the model amplifies rounding a
hundredfold: any arithmetic in float32 is off by more than the tolerance then, and another sequence tells a mistake from rounding.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a folder is all it may need

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from make_fixtures import in_double, k_fold_loss, regime_logits, regime_targets


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the folder that was inspected")
    parser.add_argument("file", type=Path, help="what inspect wrote")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    arguments = parser.parse_args()

    with safe_open(arguments.file, "pt") as file:
        metadata = file.metadata()
        ours = {name: file.get_tensor(name).double() for name in file.keys()}
    ids = torch.tensor([[int(token) for token in metadata["tokens"].split(",")]])
    k = int(metadata["patch_size"])
    positions = ids.shape[1] // k

    model = in_double(AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval())
    logits = regime_logits(model, ids, k, positions)
    loss = k_fold_loss(logits[:, :-1], regime_targets(ids, k, k, positions - 1))
    loss.backward()
    theirs = {"logits": logits.detach()[0], "loss": loss.detach()}
    theirs |= {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}

    failures = []
    if k == 1:
        with torch.no_grad():
            stock = model(input_ids=ids, labels=ids).loss.item()
        if not abs(stock - loss.item()) <= 1e-4 * abs(stock):
            failures.append(f"the loss of transformers with these labels is {stock}, not {loss.item()}")
    if names := ours.keys() ^ theirs.keys():
        failures.append(f"only on one side: {sorted(names)}")
    worst = ("", 0.0)
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name].shape != theirs[name].shape:
            failures.append(f"{name} has shape {list(ours[name].shape)} instead of {list(theirs[name].shape)}")
            continue
        difference = ((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()).item()
        worst = max(worst, (name, difference), key=lambda pair: pair[1])
        if not difference <= arguments.tolerance:  # a NaN fails too
            failures.append(f"{name} differs by {difference:.3g}")
    print(f"{type(model).__name__}: {len(theirs)} tensors, loss {loss.item():.6f}, ours {ours['loss'].item():.6f}; worst: {worst[0]} off by {worst[1]:.3g}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
