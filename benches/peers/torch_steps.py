"""Training steps on request in PyTorch: the work of a step of patchgpt, the protocol of benches/src/bin/steps.rs.

A step reads a fresh batch, runs forward and backward, clips the gradient by its global norm and updates with AdamW. Token regime: [B, T]
ids, next-token cross-entropy. Patch regime: [B, T, K] ids, the mean of the K embeddings is a position, and its softmax is scored against the
K ids of the next patch. `--loss k` computes K cross-entropies, `--loss one` a single log_softmax and K gathers.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

import torch_setup

K = 4
LLAMA = dict(dialect="llama", layers=24, heads=16, vocabulary=32000)
MODELS = {
    "S": dict(dialect="gpt2", layers=6, width=384, heads=6, ffn=1536, vocabulary=8192),
    "M": dict(dialect="llama", layers=12, width=768, heads=12, ffn=2048, vocabulary=32000),
    # The vocabulary is padded as patchgpt pads it.
    "124M": dict(dialect="gpt2", layers=12, width=768, heads=12, ffn=3072, vocabulary=50304),
    "370M": dict(LLAMA, width=1024, ffn=2752),
    "780M": dict(LLAMA, width=1536, ffn=4128),
    "1.3B": dict(LLAMA, width=2048, ffn=5504),
}


class Block(nn.Module):
    """A pre-norm block with joined projections of queries, keys and values."""

    def __init__(self, size):
        super().__init__()
        self.llama = size["dialect"] == "llama"
        width, ffn, bias = size["width"], size["ffn"], not self.llama
        norm = nn.RMSNorm if self.llama else nn.LayerNorm
        self.heads = size["heads"]
        self.attention_norm, self.ffn_norm = norm(width, eps=1e-5), norm(width, eps=1e-5)
        self.joined = nn.Linear(width, 3 * width, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)
        self.up = nn.Linear(width, 2 * ffn if self.llama else ffn, bias=bias)
        self.down = nn.Linear(ffn, width, bias=bias)

    def forward(self, x, cos, sin):
        b, t, c = x.shape
        q, k, v = (p.transpose(1, 2) for p in self.joined(self.attention_norm(x)).view(b, t, 3, self.heads, -1).unbind(2))
        if self.llama:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).reshape(b, t, c))
        h = self.up(self.ffn_norm(x))
        if self.llama:
            gate, up = h.chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * up)
        return x + self.down(F.gelu(h, approximate="tanh"))


def rotate(x, cos, sin):
    """RoPE over halves of a head."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class Gpt(nn.Module):
    def __init__(self, size, loss):
        super().__init__()
        width, vocabulary, positions = size["width"], size["vocabulary"], size["positions"]
        self.llama, self.loss = size["dialect"] == "llama", loss
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = None if self.llama else nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size["layers"]))
        self.norm = (nn.RMSNorm if self.llama else nn.LayerNorm)(width, eps=1e-5)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if not self.llama:
            self.head.weight = self.embedding.weight
        half = width // size["heads"] // 2
        angles = torch.outer(torch.arange(positions).float(), 10000.0 ** (-torch.arange(half).float() / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids, targets):
        """ids and targets [B, T, K], K = 1 at token level."""
        x = self.embedding(ids.squeeze(-1)) if ids.shape[-1] == 1 else self.embedding(ids).mean(dim=2)
        if self.places is not None:
            x = x + self.places.weight
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x)).flatten(0, 1)
        targets = targets.flatten(0, 1)
        if targets.shape[-1] == 1:
            return F.cross_entropy(logits, targets.squeeze(-1))
        if self.loss == "one":
            return -F.log_softmax(logits.float(), dim=-1).gather(1, targets).mean()
        return sum(F.cross_entropy(logits, targets[:, k]) for k in range(K)) / K


class Batches:
    """Windows at random places of a million random ids, cut as patchgpt cuts them."""

    def __init__(self, size, k, device):
        self.device = device
        self.ids = torch.randint(0, size["vocabulary"], (1 << 20,))
        self.sequences, self.positions, self.k = size["sequences"], size["positions"], k
        self.reads = torch.arange((self.positions + 1) * k)

    def next(self):
        starts = torch.randint(0, len(self.ids) - len(self.reads), (self.sequences, 1))
        windows = self.ids[starts + self.reads].view(self.sequences, self.positions + 1, self.k)
        return (part.contiguous().to(self.device) for part in (windows[:, :-1], windows[:, 1:]))


def peak_memory(device):
    """As patchgpt reports it: what a card's tensors held at most, or VmHWM, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("dtype", choices=["f32", "bf16"])
    parser.add_argument("positions", type=int, help="of a sequence")
    parser.add_argument("sequences", type=int, help="of a step")
    torch_setup.add_arguments(parser)
    parser.add_argument("--loss", choices=["one", "k"], default="one")
    args = parser.parse_args()
    torch_setup.apply(args)
    size = dict(MODELS[args.model], positions=args.positions, sequences=args.sequences)
    gpt = Gpt(size, args.loss).to(args.device)
    matrices = [p for p in gpt.parameters() if p.dim() == 2]
    vectors = [p for p in gpt.parameters() if p.dim() != 2]
    groups = [dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
    forward = torch.compile(gpt, dynamic=False) if args.mode == "compile" else gpt
    batches = {"token": Batches(size, 1, args.device), "patch": Batches(size, K, args.device)}
    parameters = matrices + vectors

    def step(regime):
        optimizer.zero_grad(set_to_none=True)
        ids, targets = batches[regime].next()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = forward(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.item()

    def say(**value):
        print(json.dumps(value), flush=True)

    positions = size["sequences"] * size["positions"]
    say(
        name="PyTorch",
        version=torch.__version__,
        device=torch.cuda.get_device_name() if args.device == "cuda" else torch.backends.cpu.get_cpu_capability(),
        cuda=torch.version.cuda,
        parameters=sum(p.numel() for p in parameters),
        tokens=dict(token=positions, patch=K * positions),
    )
    for line in sys.stdin:
        asked = line.strip()
        if asked == "memory":
            say(peak_memory_bytes=peak_memory(args.device))
            continue
        begun = time.perf_counter()
        loss = step(asked)
        say(seconds=time.perf_counter() - begun, loss=loss)


if __name__ == "__main__":
    main()
