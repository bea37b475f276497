# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where the FLOPs go
#
# A training step multiplies matrices, and does much else. This notebook takes one step of a small decoder
# apart on this machine: the FLOPs of each module by formula, the time of each module from a
# profile, the utilization (MFU) that follows, and the memory. Then it asks the same questions of Llama 3 8B on
# 256 TPU v5p, which are compiled for and not needed.
#
# It takes about three minutes on two cores, most of them in compilers and in the tokenizer.

# %% tags=["parameters"]
layers, width, heads, mlp = 4, 256, 4, 688
vocabulary, length, batch = 8192, 256, 8
data = ["python_stdlib.validation_fraction=0.01"]
steps = 12
large, chip, chips = "pods/llama3_8b.gin", "v5p", 256
large_bindings = []
policies = ["full", "attention", "dots", "none"]

# %%
# %matplotlib inline
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import fmjax

folder = Path(tempfile.mkdtemp(prefix="fmjax-"))


def experiment(*bindings):
    return fmjax.load_experiment(
        "quickstart.gin",
        [
            f"transformer.num_layers={layers}",
            f"transformer.embed_dim={width}",
            f"transformer.num_heads={heads}",
            f"transformer.num_kv_heads={heads}",
            f"transformer.mlp_dim={mlp}",
            "transformer.scan_layers=False",
            f"gpt.vocab_size={vocabulary}",
            f"gpt.max_length={length}",
            f"sentencepiece.vocab_size={vocabulary}",
            f"data.length={length}",
            f"train.batch_size={batch}",
            f"train.steps={steps}",
            "train.log_every=1",
            "train.eval_every=0",
            "train.eval_batches=1",
            "train.checkpoint_every=0",
            "cosine.warmup_steps=1",
            "sample.prompt=None",
            *data,
            *bindings,
        ],
    )


small = experiment()

# %% [markdown]
# ## FLOPs by formula
#
# A weight is multiplied with each token once in the forward pass and twice in the backward pass (for the gradients
# of its input and of itself), a multiplication and an addition each time: **6 FLOPs per weight and token**
# (Kaplan et al. 2020; Chowdhery et al. 2022). The scores and sums of attention have no weights: they take
# 12 · heads · head width · length per token and layer. The input embedding is looked up, not
# multiplied; here the same table is also the head, where it is.

# %%
parameters = fmjax.shardings(small).query("part == 'parameters'")
tokens = batch * length


def module(path):
    if path.startswith("tokens"):
        return "head and loss"
    if "norm" in path:
        return "norms"
    return "feed-forward" if "/mlp/" in path else "attention: projections"


size = parameters["shape"].map(np.prod)
flops = 6 * tokens * size.groupby(parameters.index.map(module)).sum().astype(float)
flops["attention: scores"] = 12 * layers * width * length * tokens
print(f"{size.sum():,} parameters, {tokens:,} tokens and {flops.sum() / 1e9:.1f} GFLOPs a step")
pd.DataFrame({"GFLOPs": flops / 1e9, "share": flops / flops.sum()}).style.format("{:.2f}").format("{:.1%}", ["share"])

# %% [markdown]
# ## The same step, measured
#
# The steps are trained here, the last four of them under JAX's profiler (`train.profile`). MFU, the model FLOPs
# utilization, is FLOPs per second over the peak. Chips have a stated peak. For this CPU one product of two square
# matrices with as many FLOPs as the step stands for it, measured before and after the run, since other programs may share the
# cores (as when the outputs below were made, so milliseconds are long, and only ratios count).

# %%
def product_rate(total, repeats=3):
    """FLOP/s of products of square matrices in float32 of so many FLOPs, [repeats]."""
    n = int((total / 2) ** (1 / 3))
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(jnp.dot)
    product(x, x).block_until_ready()
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        rates.append(2 * n**3 / (time.perf_counter() - start))
    return rates


# %%
# %%capture
rates = product_rate(flops.sum())
run = fmjax.train(experiment(f"train.profile=({steps - 3}, {steps})"), folder / "small")
rates += product_rate(flops.sum())
lines = run.metrics.query("split == 'train'")
untraced = lines[(lines.step > 2) & (lines.step < steps - 3)]
seconds, counted = untraced.step_seconds.median(), lines.flops.iloc[-1]

# %%
highest = np.median(rates)
print(f"{counted / 1e9:.1f} GFLOPs a step by fmjax's count, {flops.sum() / 1e9:.1f} by ours")
print(f"{1e3 * seconds:,.0f} ms a step: {flops.sum() / seconds / 1e9:.0f} GFLOP/s, where a product alone reaches {highest / 1e9:.0f}: an MFU of {flops.sum() / seconds / highest:.0%}")
assert np.isclose(counted, flops.sum(), rtol=1e-6)

# %% [markdown]
# ## Time by module
#
# `fmjax.profile` adds up the trace of a run by module of the model, forward and backward.

# %%
profile = fmjax.profile(folder / "small")
profile

# %%
def group(name):
    if "language_head" in name or name.startswith("(loss"):
        return "head and loss"
    if name.endswith("/mlp"):
        return "feed-forward"
    if name.endswith("/attention"):
        return "attention"
    if "norm" in name:
        return "norms"
    return "optimizer" if name == "optimizer" else "embedding and rest"


spent = profile.frame.share.groupby(group).sum()
shares = flops / flops.sum()
shares["attention"] = shares.pop("attention: projections") + shares.pop("attention: scores")
both = pd.DataFrame({"FLOPs": shares, "time": spent}).fillna(0).sort_values("FLOPs")
figure, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
places = np.arange(len(both))
ax.barh(places + 0.2, 100 * both.FLOPs, height=0.38, color="C0", label="of the FLOPs, by formula")
ax.barh(places - 0.2, 100 * both.time, height=0.38, color="C1", label="of the time, by the profile")
ax.set_yticks(places, both.index)
ax.set_xlabel("share (%)")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False);

# %% [markdown]
# Where the orange bar is longer than the blue one, a module spends its time on something else than products:
#
# - The **optimizer** and the **norms** have almost no FLOPs. They read and write every parameter or every
#   activation, and take the time that memory needs for it. AdamW's update does not depend on the batch, so it weighs
#   less in a run with more tokens a step.
# - **Attention** has softmax and masks beside its products, and the **loss** a softmax over the vocabulary.
# - In a model as small as this the **head** is a large part of the FLOPs, since the vocabulary is many times the
#   width. In a large model it is a few percent.
#
# A CPU's trace lacks the threads that help with a product, so the modules with large products, above all the feed-forward
# blocks, take more of the time than is drawn. On TPUs and GPUs the times are the device's own.
#
# ## Memory, and what rematerialization trades
#
# The state is known before anything runs: parameters and Adam's two moments in float32. Activations depend on what is
# kept for the backward pass. With `transformer.remat = 'full'` only the input of each layer is kept, and the layer is
# computed again: up to a third more FLOPs in the layers, which the formula, and so MFU, does not count. `fmjax.plan` compiles
# the same step for four TPU v5e and reads from the program what it needs and multiplies.

# %%
state = fmjax.shardings(small).groupby("part").bytes.sum() / 1e6
print(f"parameters {state['parameters']:.1f} MB, optimizer {state['optimizer']:.1f} MB")
rows = {}
for policy in ("none", "full"):
    plan = fmjax.plan(experiment(f"transformer.remat={policy!r}", "mesh.data=4"), "v5e", 4)
    executed = 4 * (plan.step_time.products_flops + plan.step_time.kernels_flops)
    rows[policy] = {
        "temporaries (MB a device)": plan.memory.temporaries / 1e6,
        "GFLOPs by formula": plan.flops_per_step / 1e9,
        "GFLOPs executed": executed / 1e9,
    }
pd.DataFrame(rows).T.style.format("{:.1f}")

# %% [markdown]
# Without rematerialization the program multiplies what the formula says. With it the products of the layers are computed
# a third more often, but for the last of each, whose result the backward pass does not need; the head is not computed again.
# What remains of the temporaries is what does not depend on the policy, above all gradients.

# %% [markdown]
# ## A large model
#
# The same for Llama 3 8B at 8192 tokens on 256 v5p, with the parameters divided by FSDP. `fmjax.plan` compiles the step
# by the TPU's compiler and reads its program; times are predicted, at least as long as a roofline says.

# %%
plans = {
    policy: fmjax.plan(fmjax.load_experiment(large, [*large_bindings, f"transformer.remat='{policy}'"]), chip, chips)
    for policy in policies
}
GIB = 2**30
rows = {
    policy: {
        "parameters": plan.memory.parameters / GIB,
        "optimizer": plan.memory.optimizer / GIB,
        "temporaries": plan.memory.temporaries / GIB,
        "block inputs": plan.memory.activations / GIB,
        "step, at least (s)": plan.step_time.low_s,
        "MFU, at most": plan.mfu(plan.step_time.low_s),
    }
    for policy, plan in plans.items()
}
large_table = pd.DataFrame(rows).T
large_table.style.format("{:.2f}").format("{:.0%}", ["MFU, at most"]).set_caption(f"GiB on each of {chips} {chip}; {large}")

# %%
figure, (left_ax, right_ax) = plt.subplots(1, 2, figsize=(10, 3), layout="constrained", sharey=True)
start = 0
for part, color in {"parameters": "C0", "optimizer": "C1", "temporaries": "0.75"}.items():
    left_ax.barh(large_table.index, large_table[part], left=start, color=color, label=part)
    start = start + large_table[part]
left_ax.set(xlabel="GiB of a device", ylabel="transformer.remat")
left_ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
start = 0
for part, color in {"compute_s": "C0", "kernels_s": "C2", "collectives_s": "C3"}.items():
    seconds_of = [getattr(plan.step_time, part) for plan in plans.values()]
    label = {"compute_s": "computation", "kernels_s": "attention kernels", "collectives_s": "collectives waited for"}[part]
    right_ax.barh(large_table.index, seconds_of, left=start, color=color, label=label)
    start = start + np.array(seconds_of)
right_ax.set_xlabel("s a step, predicted, at least")
right_ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
left_ax.invert_yaxis()
for ax in (left_ax, right_ax):
    ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# The state is a third of a GiB, too little to see: it is divided by 256, while each device has its own row of 8192 tokens, so
# what is kept of the activations decides. `full` keeps the input of each layer and recomputes the rest.
# `attention` also keeps what the attention kernel gives, which then runs once less. `dots` keeps the results of
# all products, and recomputes only what is cheap. `none` keeps everything, and is no faster than `dots`: to write and read what
# is cheap to recompute takes longer than to recompute it. On v5e, with 16 GiB, only the first two fit.
#
# FLOPs by module of this model, by the formula of above:

# %%
of_large = fmjax.load_experiment(large, large_bindings)
plan = next(iter(plans.values()))
on_one = fmjax.load_experiment(large, [*large_bindings, "mesh.data=-1", "mesh.fsdp=1"])
parameters = fmjax.shardings(on_one).query("part == 'parameters'")
size = parameters["shape"].map(np.prod)
weights = size.groupby(parameters.index.map(lambda p: "feed-forward" if "/mlp/" in p else "norms" if "norm" in p else "attention: projections" if "/attention/" in p else "head" if "head" in p else "embedding")).sum()
weights["embedding"] = 0  # looked up
per_token = 6 * weights.astype(float)
per_token["attention: scores"] = plan.flops_per_step / plan.units_per_step - per_token.sum()
(per_token / per_token.sum()).sort_values(ascending=False).to_frame("share of the FLOPs").style.format("{:.1%}")

# %%
scores = per_token["attention: scores"]
half = plan.units_per_step / of_large.train.batch_size * (per_token.sum() - scores) / scores
print(f"attention's scores are half of all FLOPs at a length of {half:,.0f} tokens")

# %% [markdown]
# The feed-forward blocks are most of a large model. The scores of attention grow with the length, the rest of a token's
# FLOPs does not. This counts every key, as PaLM's formula does; causal attention needs half of them, and `fmjax plan`
# gives the utilization in both conventions.
