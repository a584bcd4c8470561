"""Writes every file under fixtures/: what PyTorch and transformers compute for tiny models and single ops.

    python make_fixtures.py            # needs the versions of requirements.txt; a few seconds on one CPU core

Values are float64 computed from float32 weights, so that a reader in either precision can be held against them.
transformers rounds to float32 inside LlamaRMSNorm and the rotary embedding even in a float64 model; `in_double` replaces these
two, and `transcript` checks the result against the untouched float32 model. README.md lists the tensors.
"""

import copy
import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

import ops

FIXTURES = Path(__file__).resolve().parent / "fixtures"
VOCABULARY = 97  # no multiple of 64: the padding of the table must not show
IGNORED = -100
BATCH, TOKEN_T, PATCH_T, PATCH_K = 2, 8, 6, 4

# The optimizer transcript: four patch steps, then six token steps with the optimizer state carried over.
STEPS, PATCH_STEPS, STEP_K, STEP_T, WARMUP, PEAK_LR = 10, 4, 3, 8, 3, 1e-2


# ---------------------------------------------------------------- models

def llama(hidden, ffn, heads, kv_heads, tied):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, bos_token_id=None, eos_token_id=None,
        use_cache=False, attn_implementation="sdpa"))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=24, n_layer=2, n_head=3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None, use_cache=False, attn_implementation="sdpa"))


def randomise(model, seed):
    """Draws every parameter, norms and biases too, so that a forgotten or swapped one shows.

    A tied table is also the head, so it is drawn smaller: gradient norms then stay on both sides of the clip at 1.
    """
    table = 0.2 if model.config.tie_word_embeddings else 0.5
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if any(part in name for part in ("embed_tokens", "wte", "wpe")):
                parameter.copy_(table * draw)
            elif parameter.dim() >= 2:
                parameter.copy_(0.12 * draw)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * draw)
            else:
                parameter.copy_(0.5 + 0.1 * draw)
    return model.eval()


def rms_norm_any_dtype(norm, x):
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def rotary_any_dtype(rotary, x, position_ids):
    """Angles computed in the dtype of x, from the base alone."""
    head = rotary.config.hidden_size // rotary.config.num_attention_heads
    cos, sin = ops.rope_tables(position_ids, head, rotary.config.rope_parameters["rope_theta"], x.dtype)
    return cos, sin


def in_double(model):
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = rms_norm_any_dtype.__get__(module)
        elif isinstance(module, LlamaRotaryEmbedding):
            module.forward = rotary_any_dtype.__get__(module)
    return model


# ---------------------------------------------------------------- regimes

def regime_logits(model, ids, k_in, positions):
    """Logits [B, T, V] of windows whose position i reads the mean of the embeddings of ids[i*k_in .. (i+1)*k_in]."""
    if k_in == 1:
        return model(input_ids=ids[:, :positions]).logits
    patches = ids[:, :positions * k_in].reshape(ids.shape[0], positions, k_in)
    return model(inputs_embeds=model.get_input_embeddings()(patches).mean(2)).logits


def regime_targets(ids, k_in, k_out, positions):
    """Targets [B, T, k_out]: position i is scored against ids[(i+1)*k_in + k]."""
    at = (torch.arange(positions)[:, None] + 1) * k_in + torch.arange(k_out)[None, :]
    return ids[:, at]


def k_fold_loss(logits, targets):
    """The loss of patch-level training as its authors write it: the mean over k of K ordinary nll losses."""
    log_probabilities = F.log_softmax(logits, dim=-1).flatten(0, 1)
    k_out = targets.shape[-1]
    return sum(F.nll_loss(log_probabilities, targets[..., k].flatten()) for k in range(k_out)) / k_out


def valid_target_loss(logits, targets):
    """The mean over all valid targets: -sum log p / M. Equal to `k_fold_loss` where nothing is ignored."""
    log_probabilities = F.log_softmax(logits, dim=-1).flatten(0, 1)
    total = sum(F.nll_loss(log_probabilities, targets[..., k].flatten(), ignore_index=IGNORED, reduction="sum")
                for k in range(targets.shape[-1]))
    return total / (targets != IGNORED).sum()


def gradients(model, loss):
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))


def draw_ids(seed, *shape):
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def patch_ids(seed):
    """Windows in which some patches hold a token twice, one of them four times."""
    ids = draw_ids(seed, BATCH, PATCH_T + 1, PATCH_K)
    ids[0, 2, 3] = ids[0, 2, 1]
    ids[0, 5, 0] = ids[0, 5, 3]
    ids[1, 4, :] = ids[1, 4, 0]
    return ids.flatten(1)


def transcript(single, seed):
    """Losses, logits and gradients of one model in both regimes, the two ablations, and with ignored targets."""
    model = in_double(single)
    out = {}

    ids = draw_ids(seed, BATCH, TOKEN_T + 1)
    logits = regime_logits(model, ids, 1, TOKEN_T)
    loss = k_fold_loss(logits, regime_targets(ids, 1, 1, TOKEN_T))
    torch.testing.assert_close(regime_logits(single, ids, 1, TOKEN_T).double(), logits, atol=1e-5, rtol=1e-5)
    out |= {"token.ids": ids, "token.logits": logits, "token.loss": loss}
    out |= {f"token.grad.{name}": grad for name, grad in gradients(model, loss).items()}

    ids = patch_ids(seed + 1)
    logits = regime_logits(model, ids, PATCH_K, PATCH_T)
    targets = regime_targets(ids, PATCH_K, PATCH_K, PATCH_T)
    loss = k_fold_loss(logits, targets)
    torch.testing.assert_close(valid_target_loss(logits, targets), loss)
    (d_logits,) = torch.autograd.grad(loss, logits, retain_graph=True)
    out |= {"patch.ids": ids, "patch.targets": targets, "patch.logits": logits, "patch.loss": loss, "patch.d_logits": d_logits}
    out |= {f"patch.grad.{name}": grad for name, grad in gradients(model, loss).items()}

    targets = targets.clone()
    targets[0, 1, 2] = IGNORED          # one of four
    targets[0, 4, :3] = IGNORED         # all but one
    targets[1, 5, :] = IGNORED          # a whole row
    logits = logits.detach().requires_grad_()
    loss = valid_target_loss(logits, targets)
    (d_logits,) = torch.autograd.grad(loss, logits)
    out |= {"ignored.patch.targets": targets, "ignored.patch.loss": loss, "ignored.patch.d_logits": d_logits}

    # Ki = K, Ko = 1 reads T*K + 1 of the ids above; Ki = 1, Ko = K reads the first T + K.
    logits = regime_logits(model, ids, PATCH_K, PATCH_T)
    out["input_only.loss"] = k_fold_loss(logits, regime_targets(ids, PATCH_K, 1, PATCH_T))
    logits = regime_logits(model, ids, 1, PATCH_T)
    out["output_only.loss"] = k_fold_loss(logits, regime_targets(ids, 1, PATCH_K, PATCH_T))
    return out


def inspection(single, seed):
    """Logits of every position, loss and gradients of one sequence in both regimes: T positions, of which T - 1 are scored. At token
    level the loss is that of stock transformers with labels that are the input, which it computes in float32 and so is compared as a number."""
    model = in_double(single)
    out = {}
    for stage, k, positions in (("token", 1, 11), ("patch", PATCH_K, PATCH_T)):
        ids = draw_ids(seed + k, 1, positions * k)
        if k > 1:
            ids[0, 9] = ids[0, 8]  # a token twice in a patch that is a target
        logits = regime_logits(model, ids, k, positions)
        loss = k_fold_loss(logits[:, :-1], regime_targets(ids, k, k, positions - 1))
        if k == 1:
            stock = model(input_ids=ids, labels=ids).loss
            torch.testing.assert_close(stock.double(), loss, atol=0, rtol=1e-5)
        out |= {f"{stage}.ids": ids[0], f"{stage}.logits": logits[0], f"{stage}.loss": loss}
        out |= {f"{stage}.grad.{name}": grad for name, grad in gradients(model, loss).items()}
    return out


# ---------------------------------------------------------------- ten optimizer steps

def learning_rates():
    """Linear warm-up, then one cosine to zero across both stages."""
    warm = [PEAK_LR * (step + 1) / WARMUP for step in range(WARMUP)]
    rest = STEPS - WARMUP
    return warm + [PEAK_LR * 0.5 * (1 + math.cos(math.pi * step / rest)) for step in range(rest)]


def optimizer_run(model, batches, rates):
    """AdamW over (ids, K) batches. Returns losses and gradient norms (before clipping) per step."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
         {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}],
        lr=0.0, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    losses, norms = [], []
    for (ids, k), rate in zip(batches, rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = k_fold_loss(regime_logits(model, ids, k, STEP_T), regime_targets(ids, k, k, STEP_T))
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        losses.append(loss.detach())
        optimizer.step()
    return torch.stack(losses), torch.stack(norms)


def adamw_transcript(single, seed):
    patches = draw_ids(seed, PATCH_STEPS, BATCH, (STEP_T + 1) * STEP_K)
    tokens = draw_ids(seed + 1, STEPS - PATCH_STEPS, BATCH, STEP_T + 1)
    # Every other step draws from seven tokens only: few targets, aligned gradients, larger norms.
    patches[1::2] %= 7
    tokens[1::2] %= 7
    batches = [(ids, STEP_K) for ids in patches] + [(ids, 1) for ids in tokens]
    rates = learning_rates()
    out = {"patch.ids": patches, "token.ids": tokens, "lr": torch.tensor(rates, dtype=torch.float64)}
    for precision, model in (("f64", in_double(single)), ("f32", copy.deepcopy(single))):
        losses, norms = optimizer_run(model, batches, rates)
        clipped = int((norms > 1.0).sum())
        print(f"  {precision}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, norms {norms.min():.3f} to {norms.max():.3f}, {clipped}/10 clipped")
        assert 2 <= clipped <= STEPS - 2, "choose weights or batches so that clipping is active in some steps and inactive in others"
        out |= {f"{precision}.loss": losses, f"{precision}.grad_norm": norms}
        out |= {f"{precision}.final.{name}": p.detach() for name, p in model.named_parameters()}
    return out


# ---------------------------------------------------------------- files

def write(name, tensors):
    def stored(tensor):
        tensor = tensor.detach()
        return (tensor if tensor.is_floating_point() else tensor.to(torch.int32)).contiguous().clone()
    save_file({key: stored(tensor) for key, tensor in tensors.items()}, FIXTURES / f"{name}.safetensors")


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    shutil.rmtree(FIXTURES, ignore_errors=True)
    FIXTURES.mkdir()
    models = {
        "llama": randomise(llama(hidden=32, ffn=48, heads=4, kv_heads=2, tied=False), seed=1),
        "llama_tied": randomise(llama(hidden=16, ffn=24, heads=2, kv_heads=2, tied=True), seed=2),
        "gpt2": randomise(gpt2(), seed=3),
    }
    with sdpa_kernel(SDPBackend.MATH):
        for index, (name, model) in enumerate(models.items()):
            print(name)
            model.save_pretrained(FIXTURES / name)
            (FIXTURES / name / "generation_config.json").unlink(missing_ok=True)
            write(name, transcript(model, seed=100 * (index + 1)))
            write(f"inspect_{name}", inspection(model, seed=10_000 * (index + 1)))
            if name != "llama_tied":
                write(f"adamw_{name}", adamw_transcript(model, seed=1000 * (index + 1)))
        write("ops", ops.transcript(seed=7))
    total = sum(file.stat().st_size for file in FIXTURES.rglob("*") if file.is_file())
    print(f"{total / 1e6:.2f} MB in {FIXTURES.name}/")


if __name__ == "__main__":
    main()
