"""Values and gradients of single ops in float64, at small odd shapes, written by make_fixtures.py to ops.safetensors.

For an op with inputs x, w the file holds `op.x`, `op.w`, `op.out`, the upstream gradient `op.d_out` (same shape as out), and
`op.d_x`, `op.d_w` = d(sum(out * d_out)) / d(x), d(w). Integer inputs have no gradient.
"""

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

EPS = 1e-5
PATCHES = (1, 2, 3, 4, 8, 16)
HEADS = (16, 64, 80, 96, 128)


def rope_tables(positions, head, base, dtype):
    """cos and sin [.., T, head] of the rotation by halves: angle of pair j is position * base^(-2j/head)."""
    frequencies = base ** (-torch.arange(0, head, 2, dtype=dtype) / head)
    angles = positions[..., None].to(dtype) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rope(x):
    """x [B, T, H, D]; position of row t is t."""
    cos, sin = rope_tables(torch.arange(x.shape[1])[None, :], x.shape[3], 10000.0, x.dtype)
    rotated, _ = apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    return rotated


def swiglu(x):
    """x [.., 2F] holds gate, then up: silu(gate) * up."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def attention(q, k, v):
    """Causal, q [B, T, H, D], k and v [B, T, Hkv, D]; query head h reads key head h // (H/Hkv); scale 1/sqrt(D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def attention_lse(q, k):
    """log-sum-exp [B, H, T] of the scaled, masked scores, natural logarithm."""
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).logsumexp(-1)


def cross_entropy(logits, targets, weights):
    """logits [N, V], targets [N, K], weights [K]: sum of w_k * nll over valid targets / sum of w_k over valid targets."""
    valid = targets != -100
    log_probabilities = F.log_softmax(logits, dim=-1)
    nll = -log_probabilities.gather(1, targets.masked_fill(~valid, 0))
    weighted = weights * valid
    return (weighted * nll).sum() / weighted.sum()


def k_fold(logits, targets):
    """logits [N, V], targets [N, K]: the loss of patch-level training as its authors write it."""
    log_probabilities = F.log_softmax(logits, dim=-1)
    return sum(F.nll_loss(log_probabilities, targets[:, k]) for k in range(targets.shape[1])) / targets.shape[1]


def transcript(seed):
    generator = torch.Generator().manual_seed(seed)
    out = {}

    def normal(*shape, scale=1.0, shift=0.0):
        return shift + scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    def record(name, function, constants=None, **inputs):
        """Runs function(**inputs, **constants), draws d_out, and stores both sides."""
        constants = constants or {}
        tracked = {key: value.requires_grad_() for key, value in inputs.items()}
        result = function(**tracked, **constants)
        d_out = normal(*result.shape)
        grads = torch.autograd.grad(result, list(tracked.values()), d_out)
        stored = {**constants, **tracked, "out": result, "d_out": d_out}
        stored |= {f"d_{key}": grad for key, grad in zip(tracked, grads)}
        out.update({f"{name}.{key}": value for key, value in stored.items()})

    record("rms_norm", lambda x, weight: F.rms_norm(x, (9,), weight, EPS), x=normal(3, 5, 9), weight=normal(9, scale=0.3, shift=1.0))
    record("layer_norm", lambda x, weight, bias: F.layer_norm(x, (9,), weight, bias, EPS),
           x=normal(3, 5, 9, shift=0.5), weight=normal(9, scale=0.3, shift=1.0), bias=normal(9))
    record("gelu", lambda x: F.gelu(x, approximate="tanh"), x=normal(3, 13, scale=2.0))
    record("swiglu", swiglu, x=normal(3, 5, 14, scale=2.0))
    record("rope", rope, x=normal(2, 7, 3, 6))
    q, k, v = normal(2, 7, 4, 6), normal(2, 7, 2, 6), normal(2, 7, 2, 6)
    out["attention.lse"] = attention_lse(q, k)
    record("attention", attention, q=q, k=k, v=v)
    record("softmax", lambda x: x.softmax(-1), x=normal(3, 5, 11, scale=3.0))
    record("matmul", lambda a, b: a @ b, a=normal(2, 5, 7), b=normal(2, 7, 3))

    # ids [B, T*K]; out [B, T, C] is the mean of K table rows. A token occurs twice in a patch, and in several patches.
    ids = torch.randint(0, 13, (2, 15), generator=generator)
    ids[0, 3], ids[1, 0] = ids[0, 5], ids[0, 5]
    record("patch_embedding", lambda table, ids: table[ids.reshape(2, 5, 3)].mean(2), {"ids": ids}, table=normal(13, 7))
    record("embedding", lambda table, ids: table[ids], {"ids": ids}, table=normal(13, 7))

    targets = torch.randint(0, 11, (5, 3), generator=generator)
    targets[0, 2] = targets[0, 0]
    targets[1, :] = targets[1, 0]
    targets[2, 1] = -100
    targets[4, :] = -100
    for name, weights in (("uniform", [1.0, 1.0, 1.0]), ("harmonic", [1.0, 1 / 2, 1 / 3])):
        constants = {"targets": targets, "weights": torch.tensor(weights, dtype=torch.float64)}
        record(f"cross_entropy.{name}", cross_entropy, constants, logits=normal(5, 11, scale=2.0))

    # The authors' form: the mean over k of K losses of one target each. A token may occur twice among the targets of a row.
    for k in PATCHES:
        targets = {"targets": torch.randint(0, 13, (7, k), generator=generator)}
        record(f"k_fold.{k}", k_fold, targets, logits=normal(7, 13, scale=2.0))

    # Attention at the head sizes of the models, two query heads on one of the keys.
    for head in HEADS:
        q, k, v = normal(1, 5, 2, head), normal(1, 5, 1, head), normal(1, 5, 1, head)
        record(f"attention.{head}", attention, q=q, k=k, v=v)

    # Logits up to 1e4, and a mask of -inf.
    logits = normal(4, 9, scale=3e3)
    logits[:, 0] = 1e4
    logits[:, 1] = 1e4 - 0.5
    record("softmax.large", lambda x: x.softmax(-1), x=logits)
    targets = {"targets": torch.tensor([[0, 1], [1, 1], [5, 0], [1, 0]])}
    record("k_fold.large", k_fold, targets, logits=logits.detach().clone())
    return out
