"""Checks that stock transformers loads an exported model folder and computes the same logits.

    python check_transformers.py RUN/model logits.safetensors [--text TEXT] [--tolerance 1e-4]

logits.safetensors holds `ids` (integers, [T] or [B, T]) and `logits` (float, [T, V] or [B, T, V]) as patchgpt computed them for the
folder's weights. The tokenizer must decode what it encoded, and encode as tokenizer.json alone says. Exit code 1 on a failure.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a folder is all it may need

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "ROMEO:\nBut, soft! what light through yonder window breaks?\n\n  It is the east -- caf\u00e9, na\u00efve, \u4e2d\u6587, \U0001f319 [Exit.]\n"


def check_logits(folder, file, tolerance):
    """Failures of the model: weights that are missing or left over, shapes, and logits that differ."""
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    failures = [f"{kind}: {sorted(map(str, names))}" for kind, names in loading.items() if names]

    tensors = load_file(file)
    if missing := {"ids", "logits"} - tensors.keys():
        return failures + [f"{file} lacks {sorted(missing)}; it holds {sorted(tensors)}"]
    ids, ours = tensors["ids"].long(), tensors["logits"].float()
    if ids.dim() == 1:
        ids = ids[None]
    if ours.dim() == 2:
        ours = ours[None]
    with torch.no_grad():
        theirs = model.eval()(input_ids=ids).logits
    if ours.shape != theirs.shape:
        return failures + [f"logits have shape {list(ours.shape)}, transformers computes {list(theirs.shape)}"]
    difference = (ours - theirs).abs().max().item()
    print(f"{type(model).__name__}: {ids.numel()} positions, max |logit difference| {difference:.3g} (tolerance {tolerance:g})")
    if not difference < tolerance:  # a NaN fails too
        failures.append(f"logits differ by {difference:.3g}, more than {tolerance:g}")
    return failures


def check_tokenizer(folder, text):
    """Failures of the tokenizer: a text that does not come back, or ids that depend on who reads tokenizer.json."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    print(f"{type(tokenizer).__name__}: {len(text.encode())} bytes in {len(ids)} tokens")
    failures = []
    if back != text:
        failures.append(f"decode(encode(text)) differs: {back!r} instead of {text!r}")
    plain = Tokenizer.from_file(str(Path(folder) / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    if ids != plain:
        failures.append(f"AutoTokenizer encodes {ids[:8]}..., tokenizer.json itself {plain[:8]}...; name the class in tokenizer_config.json")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with config.json, model.safetensors and tokenizer.json")
    parser.add_argument("logits", type=Path, help="safetensors file with ids and logits")
    parser.add_argument("--text", default=TEXT, help="text the tokenizer must bring back")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()

    failures = []
    for name, check in (("model", lambda: check_logits(arguments.model, arguments.logits, arguments.tolerance)),
                        ("tokenizer", lambda: check_tokenizer(arguments.model, arguments.text))):
        try:
            failures += check()
        except Exception as error:  # whatever a folder makes transformers raise is a finding, not a crash of the check
            failures.append(f"{name} of {arguments.model} does not load: {type(error).__name__}: {error}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
