"""Single ops on request in PyTorch: the ops of benches/src/bin/ops.rs under the same names, the same protocol.

Scores are those of a K-target loss in the form of one log_softmax and K gathers, PyTorch's fastest; with K = 1 its own cross_entropy.
A run is as many calls as take a while; on a card several between two waits, each on inputs of its own, as ours is.
"""

import argparse
import json
import re
import sys
import time

import torch
import torch.nn.functional as F

import torch_setup

# As in benches/src/bin/ops.rs.
ROTATED_BYTES, MOST_SETS, CALLS, WHILE = 256e6, 16, 16, 0.02


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


def gemm(m, k, n):
    return [torch.randn(m, k), torch.randn(k, n)], lambda a, b: a @ b


def gemm_bias_gelu(m, k, n):
    inputs = [torch.randn(m, k), torch.randn(n, k) * 0.02, torch.zeros(n)]
    return inputs, lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh")


OPS = {
    "attention": attention,
    "gemm, bias and GELU": gemm_bias_gelu,
    "gemm": gemm,
    "head and loss": head,
    "cross-entropy": cross_entropy,
    "LayerNorm": layer_norm,
    "RMSNorm": rms_norm,
    "GELU": gelu,
    "SwiGLU": swiglu,
    "embedding": embedding,
}


def adamw(count):
    """A step of the fused optimizer with clipping, over one flat parameter in f32."""
    parameter = torch.nn.Parameter(torch.randn(count, dtype=torch.float32))
    parameter.grad = torch.randn(count, dtype=torch.float32)
    optimizer = torch.optim.AdamW([parameter], lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)

    def step():
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        optimizer.step()

    return step


def sizes(name):
    # A capital letter and an equals sign, or nothing, stand before a size.
    return map(int, re.findall(r"(?<![A-Za-z])\d+", name))


def sets(name, run, mode, on_card):
    """The op as functions of nothing, one for each set of inputs."""
    if name.startswith("AdamW"):
        return [adamw(*sizes(name))]
    first, inputs = build(name, run, mode)
    count = int(ROTATED_BYTES / sum(x.numel() * x.element_size() for x in inputs)) if on_card else 0
    return [first] + [build(name, run, mode)[0] for _ in range(min(count, MOST_SETS - 1))]


def build(name, run, mode):
    """The op that `name` begins with, at the sizes that follow, as a function of nothing; its inputs."""
    op = next(op for start, op in OPS.items() if name.startswith(start))
    inputs, function = op(*sizes(name))
    inputs = [x.requires_grad_() for x in inputs]
    if mode == "compile":
        function = torch.compile(function, dynamic=False)
    if run == "forward":
        def forward():
            with torch.no_grad():
                function(*inputs)

        return forward, inputs
    with torch.no_grad():
        gradient = torch.randn_like(function(*inputs))

    def both():
        for x in inputs:
            x.grad = None
        function(*inputs).backward(gradient)

    return both, inputs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dtype", choices=["f32", "bf16"])
    torch_setup.add_arguments(parser)
    args = parser.parse_args()
    torch_setup.apply(args)
    torch.set_default_device(args.device)
    torch.set_default_dtype({"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype])
    on_card = args.device == "cuda"
    wait = torch.cuda.synchronize if on_card else lambda: None

    def say(**value):
        print(json.dumps(value), flush=True)

    device = torch.cuda.get_device_name() if on_card else torch.backends.cpu.get_cpu_capability()
    say(name="PyTorch", version=torch.__version__, device=device, cuda=torch.version.cuda)
    ready = ("", [])
    for line in sys.stdin:
        asked = line.rstrip("\n")
        if ready[0] != asked:
            ready = ("", [])
            ready = (asked, sets(*asked.split("\t"), args.mode, on_card))
        runs = ready[1]
        wait()
        calls, begun = 0, time.perf_counter()
        while calls < CALLS if on_card else time.perf_counter() - begun < WHILE:
            runs[calls % len(runs)]()
            calls += 1
        wait()
        say(seconds=(time.perf_counter() - begun) / calls)


if __name__ == "__main__":
    main()
