"""Single ops on request in PyTorch: the ops of benches/src/bin/ops.rs under the same names, the same protocol.

Scores are those of a K-target loss in the form of one log_softmax and K gathers, PyTorch's fastest; with K = 1 its own cross_entropy.
"""

import argparse
import json
import re
import sys
import time

import torch
import torch.nn.functional as F


def attention(b, h, t, d):
    inputs = [torch.randn(b, h, t, d) for _ in range(3)]
    return inputs, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)


def loss(logits, targets):
    if targets.shape[1] == 1:
        return F.cross_entropy(logits, targets[:, 0])
    return -F.log_softmax(logits, dim=-1).gather(1, targets).mean()


def cross_entropy(n, v, k):
    targets = torch.randint(0, v, (n, k))
    return [torch.randn(n, v)], lambda logits: loss(logits, targets)


def head(n, c, v, k):
    targets = torch.randint(0, v, (n, k))
    return [torch.randn(n, c), torch.randn(v, c) * 0.02], lambda x, w: loss(x @ w.T, targets)


def layer_norm(n, c):
    return [torch.randn(n, c), torch.ones(c), torch.zeros(c)], lambda x, w, b: F.layer_norm(x, (c,), w, b)


def rms_norm(n, c):
    return [torch.randn(n, c), torch.ones(c)], lambda x, w: F.rms_norm(x, (c,), w, 1e-5)


def gelu(n, c):
    return [torch.randn(n, c)], lambda x: F.gelu(x, approximate="tanh")


def swiglu(n, c):
    def op(x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    return [torch.randn(n, 2 * c)], op


def embedding(n, v, c):
    ids = torch.randint(0, v, (n,))
    return [torch.randn(v, c)], lambda table: F.embedding(ids, table)


OPS = {
    "attention": attention,
    "head and loss": head,
    "cross-entropy": cross_entropy,
    "LayerNorm": layer_norm,
    "RMSNorm": rms_norm,
    "GELU": gelu,
    "SwiGLU": swiglu,
    "embedding": embedding,
}


def build(name, run, mode):
    """The op that `name` begins with, at the sizes that follow, as a function of nothing."""
    op = next(op for start, op in OPS.items() if name.startswith(start))
    # A capital letter and an equals sign, or nothing, stand before a size.
    inputs, function = op(*map(int, re.findall(r"(?<![A-Za-z])\d+", name)))
    inputs = [x.requires_grad_() for x in inputs]
    if mode == "compile":
        function = torch.compile(function, dynamic=False)
    if run == "forward":
        def forward():
            with torch.no_grad():
                function(*inputs)

        return forward
    with torch.no_grad():
        gradient = torch.randn_like(function(*inputs))

    def both():
        for x in inputs:
            x.grad = None
        function(*inputs).backward(gradient)

    return both


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("threads", type=int)
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    def say(**value):
        print(json.dumps(value), flush=True)

    say(name="PyTorch", version=torch.__version__, device=torch.backends.cpu.get_cpu_capability())
    ready = ("", None)
    for line in sys.stdin:
        asked = line.rstrip("\n")
        if ready[0] != asked:
            ready = ("", None)
            ready = (asked, build(*asked.split("\t"), args.mode))
        begun = time.perf_counter()
        ready[1]()
        say(seconds=time.perf_counter() - begun)


if __name__ == "__main__":
    main()
