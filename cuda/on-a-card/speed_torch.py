#!/usr/bin/env python3
"""The work of tests/examples/speed in the PyTorch of this machine, in the same columns.

    python3 speed_torch.py            # the first card, eager; --compile compiles each op
"""
import argparse
import statistics

import torch
import torch.nn.functional as F

POSITIONS, SEQUENCE, WIDTH, FFN, VOCABULARY, HEAD = 4096, 1024, 768, 3072, 32768, 64


def seconds(call, calls=10, samples=20):
    """Median and 95th percentile of a call's time on the card."""
    call()
    times = []
    for _ in range(samples):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    times.sort()
    return statistics.median(times), times[min(len(times) * 95 // 100, len(times) - 1)]


def ops(dtype):
    """Name, function, shapes of its differentiable inputs, FLOPs and elements moved forward."""
    n, c, f, v = POSITIONS, WIDTH, FFN, VOCABULARY
    heads, batch = c // HEAD, n // SEQUENCE
    one = torch.randint(0, v, (n,), device="cuda")
    ids = torch.randint(0, v, (n, 4), device="cuda")
    scores = batch * heads * SEQUENCE * (SEQUENCE + 1) / 2
    attention = (batch, heads, SEQUENCE, HEAD)

    def targets_4(logits):
        logits = logits.float()
        return (torch.logsumexp(logits, -1, keepdim=True) - logits.gather(1, ids)).mean()

    return [
        ("matmul", f"[{n}, {c}] x [{c}, {3 * c}]", lambda a, b: a @ b, [(n, c), (c, 3 * c)], 6 * n * c * c, n * c + 3 * c * c + 3 * n * c),
        ("matmul", f"[{n}, {c}] x [{c}, {v}]", lambda a, b: a @ b, [(n, c), (c, v)], 2 * n * c * v, n * c + c * v + n * v),
        ("rms_norm", f"[{n}, {c}]", lambda x, w: F.rms_norm(x, (c,), w, 1e-5), [(n, c), (c,)], 4 * n * c, 2 * n * c),
        ("layer_norm", f"[{n}, {c}]", lambda x, w, b: F.layer_norm(x, (c,), w, b), [(n, c), (c,), (c,)], 8 * n * c, 2 * n * c),
        ("gelu", f"[{n}, {f}]", lambda x: F.gelu(x, approximate="tanh"), [(n, f)], 10 * n * f, 2 * n * f),
        ("swiglu", f"[{n}, {2 * f}]", lambda x: F.silu(x[:, :f]) * x[:, f:], [(n, 2 * f)], 6 * n * f, 3 * n * f),
        ("softmax", f"[{n}, {v}]", lambda x: F.softmax(x, -1), [(n, v)], 5 * n * v, 2 * n * v),
        ("cross_entropy", f"[{n}, {v}] 1 target", lambda x: F.cross_entropy(x, one), [(n, v)], 4 * n * v, n * v),
        ("cross_entropy", f"[{n}, {v}] 4 targets", targets_4, [(n, v)], 4 * n * v, n * v),
        ("patch_embedding", f"[{n}, 4] of [{v}, {c}]", lambda t: F.embedding(ids, t).mean(1), [(v, c)], 4 * n * c, 5 * n * c),
        ("causal_attention", f"{list(attention)}", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), [attention] * 3,
         4 * scores * HEAD, 4 * n * c),
        ("linear_cross_entropy", f"[{n}, {c}] x [{v}, {c}] 4 targets", lambda x, w: targets_4(x @ w.T), [(n, c), (v, c)], 2 * n * c * v, n * c + v * c),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="torch.compile each op")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"# {torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}{', compiled' if options.compile else ''}")
    print("op\tcase\tdtype\tpass\tmedian us\tp95 us\tGB/s\tTFLOP/s")
    for dtype, name in [(torch.float32, "f32"), (torch.bfloat16, "bf16")]:
        for op, case, function, shapes, flops, elements in ops(dtype):
            run = torch.compile(function) if options.compile else function
            inputs = [torch.randn(s, device="cuda", dtype=dtype, requires_grad=True) for s in shapes]
            d_out = torch.ones_like(run(*inputs))

            def forward():
                with torch.no_grad():
                    run(*inputs)

            def both():
                torch.autograd.grad(run(*inputs), inputs, d_out)

            for label, call, factor in [("forward", forward, 1), ("forward and backward", both, 3)]:
                median, p95 = seconds(call)
                size = 2 if dtype == torch.bfloat16 else 4
                print(f"{op}\t{case}\t{name}\t{label}\t{median * 1e6:.1f}\t{p95 * 1e6:.1f}\t"
                      f"{elements * size * factor / median / 1e9:.1f}\t{flops * factor / median / 1e12:.3f}", flush=True)


if __name__ == "__main__":
    main()
