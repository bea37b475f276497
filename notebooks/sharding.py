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
# # Sharding made visible
#
# A mesh says how eight devices share one training step. This notebook shows for five meshes
# which device holds what, how many bytes that is, what the devices send each other in a step,
# and how long the step is predicted to take. Nothing is trained: the devices are virtual ones of
# this machine's CPU, and the steps are compiled for eight TPU v5e by the TPU's own compiler,
# which needs no TPU. (Without the package `libtpu` they are compiled for virtual CPU devices;
# collectives and times are then only near those of a TPU.)
#
# It takes two to five minutes on two cores, nearly all of it in the compiler.

# %% tags=["parameters"]
layers, width, heads, mlp = 8, 512, 8, 1408
vocabulary, length, batch = 8192, 512, 32
meshes = {
    "data": ["mesh.data=8"],
    "data, ZeRO-1": ["mesh.data=8", "mesh.zero1=True"],
    "fsdp": ["mesh.data=1", "mesh.fsdp=8"],
    "tensor": ["mesh.data=1", "mesh.tensor=8"],
    "all three": ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"],
}
large = "pods/llama3_8b.gin"  # of the last section

# %%
# %matplotlib inline
import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

import matplotlib.pyplot as plt
import pandas as pd
from jax.sharding import NamedSharding, PartitionSpec

import fmjax

MB = 1e6

# %% [markdown]
# ## One experiment, five meshes
#
# The model is a Llama-style decoder of 28 million parameters. Only `mesh` differs:
#
# - **data**: each device has the whole model and an eighth of the batch.
# - **data, ZeRO-1**: the same, but each device keeps only an eighth of the optimizer's state
#   (Rajbhandari et al. 2020).
# - **fsdp**: parameters and optimizer state are divided too. A layer's weights are gathered when
#   it is computed and then dropped (ZeRO-3).
# - **tensor**: heads, feed-forward units and vocabulary are divided. Every device works on the
#   whole batch and computes a part of each layer (Shoeybi et al. 2019).
# - **all three**: 2 × 2 × 2 devices, each pair along one axis.

# %%
def experiment(mesh):
    return fmjax.load_experiment(
        "quickstart.gin",
        [
            f"transformer.num_layers={layers}",
            f"transformer.embed_dim={width}",
            f"transformer.num_heads={heads}",
            f"transformer.num_kv_heads={heads}",
            f"transformer.mlp_dim={mlp}",
            "transformer.scan_layers=True",
            "transformer.remat='full'",
            f"gpt.vocab_size={vocabulary}",
            f"gpt.max_length={length}",
            f"sentencepiece.vocab_size={vocabulary}",
            f"data.length={length}",
            f"train.batch_size={batch}",
            *mesh,
        ],
    )


experiments = {name: experiment(mesh) for name, mesh in meshes.items()}
states = {name: fmjax.shardings(e) for name, e in experiments.items()}

# %% [markdown]
# `fmjax.shardings` has a row for each array of the state. `spec` names the mesh axes that divide
# each axis of the array: `P(None, ('fsdp', 'context'), 'tensor')` leaves the first whole (the
# layers, which are stacked into one array), divides the second (the width) among the devices of
# `fsdp` and `context`, and the third among those of `tensor`. The specs are the same for all
# meshes; what differs is how many devices an axis of the mesh has.

# %%
name, state = list(states.items())[-1]
columns = ["shape", "spec", "bytes", "bytes_per_device"]
state[state.part == "parameters"][columns]

# %% [markdown]
# ## Which device holds what
#
# Each picture is one array; lines divide it into blocks, and the numbers are the devices that
# hold a block. JAX draws the same as text: `jax.debug.visualize_sharding(shape, sharding)`.

# %%
def blocks(shape, sharding, axes):
    """(start, stop) along two axes of the array → the devices that hold that block."""
    found = {}
    for device, index in sharding.devices_indices_map(shape).items():
        block = tuple(index[axis].indices(shape[axis])[:2] for axis in axes)
        found.setdefault(block, []).append(device.id)
    return found


def draw(ax, shape, sharding, axes):
    rows, columns = (shape[axis] for axis in axes)
    found = blocks(shape, sharding, axes)
    for place, ((top, bottom), (left, right)) in enumerate(sorted(found)):
        devices = sorted(found[(top, bottom), (left, right)])
        color = plt.cm.Blues(0.15 + 0.5 * place / max(1, len(found) - 1))
        corner, size = (left / columns, top / rows), ((right - left) / columns, (bottom - top) / rows)
        ax.add_patch(plt.Rectangle(corner, *size, facecolor=color, edgecolor="white", linewidth=1.5))
        text = "all devices" if len(devices) == 8 else " ".join(map(str, devices))
        turn = 90 if size[0] < 0.2 < size[1] and len(devices) > 1 else 0
        middle = corner[0] + size[0] / 2, corner[1] + size[1] / 2
        ax.text(*middle, text, ha="center", va="center", fontsize=8, rotation=turn)
    ax.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def sharded(name):
    """Title → shape, sharding and the two axes that are drawn."""
    state, mesh = states[name], experiments[name].mesh
    rows = PartitionSpec(dict(mesh.all_rules)["batch"])
    moments = state[state.part == "optimizer"]
    (weight,) = (path for path in state.index[state.part == "parameters"] if path.endswith("mlp/in"))
    (moment,) = (path for path in moments.index if path.endswith(f"mu/{weight}"))
    table = "tokens/table"
    return {
        "batch\nrows × length": ((batch, length), NamedSharding(mesh.build(), rows), (0, 1)),
        "mlp/in\nwidth × hidden units": (*state.loc[weight, ["shape", "sharding"]], (1, 2)),
        "Adam's mean of mlp/in\nwidth × hidden units": (*state.loc[moment, ["shape", "sharding"]], (1, 2)),
        "embedding\nvocabulary × width": (*state.loc[table, ["shape", "sharding"]], (0, 1)),
    }


figure, axes = plt.subplots(len(meshes), 4, figsize=(10, 1.75 * len(meshes)), squeeze=False, layout="constrained")
for row, name in zip(axes, meshes):
    arrays = sharded(name)
    for ax, (shape, sharding, drawn) in zip(row, arrays.values()):
        draw(ax, shape, sharding, drawn)
    row[0].set_ylabel(name, fontsize=10)
for ax, title in zip(axes[0], arrays):
    ax.set_title(title, fontsize=9)

# %% [markdown]
# Read along a row. With `data` only the batch is divided. ZeRO-1 divides Adam's state and leaves
# the weights whole. With `fsdp` the same eight devices divide both the batch and the weights. With
# `tensor` the batch is whole on each device, and the weights are divided along the *other* axis:
# the hidden units, whose products are independent, rather than the width, which is summed over.
# On the joint mesh devices 0 and 4, 1 and 5, and so on hold the same weights, as they differ along
# `data` alone; each four of them divide the weights along both axes. Devices 0 and 1 differ along
# `tensor` and work on the same rows.
#
# ## Bytes of each device
#
# Parameters, gradients and Adam's two moments are float32. `gradients` are counted in the shape of
# the parameters, and `block inputs` are what rematerialization keeps of the activations: the input
# of every layer in bfloat16. `temporaries` is the compiler's own figure for all that is not
# state, at the moment at which it is largest: activations, gradients and gathered weights.

# %%
plans = {name: fmjax.plan(e, chip="v5e", chips=8) for name, e in experiments.items()}
compiler = next(iter(plans.values())).topology.compiler
print("compiled by", {"tpu": "the TPU's compiler"}.get(compiler, "XLA for CPUs"))
memory = pd.DataFrame(
    {
        name: {
            "parameters": plan.memory.parameters,
            "optimizer": plan.memory.optimizer,
            "gradients": plan.memory.gradients,
            "block inputs": plan.memory.activations,
            "temporaries": plan.memory.temporaries,
            "peak": plan.memory.peak,
        }
        for name, plan in plans.items()
    }
).T
(memory / MB).style.format("{:,.1f}").set_caption("MB on each device")

# %%
parts = {"parameters": "C0", "optimizer": "C1", "temporaries": "0.75"}
figure, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
left = 0
for part, color in parts.items():
    ax.barh(memory.index, memory[part] / MB, left=left, color=color, label=part)
    left = left + memory[part] / MB
ax.invert_yaxis()
ax.set_xlabel("MB on each device")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False);

# %% [markdown]
# The state (blue and orange) is 12 bytes a parameter with `data`. ZeRO-1 leaves the 4 of
# the parameters and an eighth of the other 8; `fsdp` and `tensor` leave an eighth of all. The
# temporaries do not follow the state: each device has its share of the activations on every mesh,
# but with `fsdp` it also holds the weights of the layer that it computes, gathered.
#
# ## What the devices send each other
#
# Collectives of the compiled step, by kind and mesh axes. `MB` is the size of the gathered or
# reduced arrays, of each device and step; `hidden` is the share that travels while the device
# computes.

# %%
sent = pd.DataFrame(
    [
        {
            "mesh": name,
            "collective": traffic.kind,
            "over": " × ".join(traffic.axes),
            "a step": traffic.count,
            "MB": traffic.bytes / MB,
            "hidden": traffic.asynchronous_share,
        }
        for name, plan in plans.items()
        for traffic in plan.traffic
        if traffic.bytes > 1000
    ]
)
sent.style.format({"MB": "{:,.1f}", "a step": "{:,.0f}", "hidden": "{:.0%}"}).hide(axis="index")

# %% [markdown]
# Two sizes explain nearly all of these figures: that of the weights in bfloat16, and that of one
# activation of the whole batch in bfloat16, [rows, length, width].

# %%
total = states["data"] if "data" in states else next(iter(states.values()))
weights = total[total.part == "parameters"].bytes.sum() / 2
activation = 2 * batch * length * width
print(f"weights in bfloat16: {weights / MB:.1f} MB; an activation of the batch: {activation / MB:.1f} MB")
in_units = sent.groupby("mesh", sort=False).MB.sum().to_frame("MB")
in_units["in weights"] = in_units.MB * MB / weights
in_units["in activations a layer"] = in_units.MB * MB / activation / layers
in_units.style.format("{:.2f}")

# %% [markdown]
# - With **data** the gradients are summed once (all-reduce), about the size of the weights; the
#   embedding's gradient is summed in float32, the others in bfloat16. It does not depend on the batch.
# - **ZeRO-1** also gathers the new parameters, in float32, which is twice the weights in bfloat16.
# - With **fsdp** the weights are gathered for the forward pass and again for the backward pass, which
#   is twice their size, and the gradients are reduced. It does not depend on the batch either, so a larger batch hides
#   it better.
# - With **tensor** activations travel: between attention or feed-forward, where the units are
#   divided, and the norms, where the length is. This is proportional to the batch and to the number of
#   layers, however few parameters there are: about four gathers or scatters in each of the forward pass, its
#   recomputation and the backward pass. The next product waits for most of them. That is why tensor
#   parallelism belongs on the fastest links and pays when the batch of a device is small.
#
# ## What a step costs

# %%
times = pd.DataFrame(
    {
        name: {
            "compute": plan.step_time.compute_s + plan.step_time.kernels_s,
            "collectives waited for": plan.step_time.collectives_s,
            "asynchronous collectives": plan.step_time.async_collectives_s,
            "step, at least": plan.step_time.low_s,
            "step, at most": plan.step_time.high_s,
            "MFU": plan.mfu(plan.step_time.high_s),
        }
        for name, plan in plans.items()
    }
).T
shown = times.copy()
shown[shown.columns[:-1]] *= 1e3
shown.style.format("{:.2f}").format("{:.1%}", ["MFU"]).set_caption("ms a step on eight v5e, predicted")

# %%
figure, (left_ax, right_ax) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", sharey=True)
kinds = sent.pivot_table(index="mesh", columns="collective", values="MB", aggfunc="sum").reindex(meshes).fillna(0)
colors = {"all-reduce": "C3", "all-gather": "C2", "reduce-scatter": "C4", "all-to-all": "C5", "collective-permute": "C6"}
start = 0
for kind in kinds:
    left_ax.barh(kinds.index, kinds[kind], left=start, color=colors.get(kind, "0.5"), label=kind)
    start = start + kinds[kind]
left_ax.set_xlabel("MB of each device in a step")
start = 0
for part, color in zip(times.columns[:3], ("C0", "C3", "#f4b6b6")):
    right_ax.barh(times.index, 1e3 * times[part], left=start, color=color, label=part)
    start = start + 1e3 * times[part]
right_ax.set_xlabel("ms a step, predicted")
left_ax.invert_yaxis()
for ax in (left_ax, right_ax):
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)

# %% [markdown]
# `at least` is the step if asynchronous collectives hide behind computation as far as that lasts; `at most`, which
# the picture and MFU show, if none do. ZeRO-1 computes less than `data`, since each device updates an eighth of the
# parameters. On the mesh with two devices along each axis, tensor parallelism sends a quarter of what it sends
# with eight: each device has a quarter of the rows.
#
# The model is small for eight chips, so communication weighs more here than in a real run; the
# order is what to learn from. Computation is a roofline and collectives are bounded by their links
# ([how a plan is made](../docs/tasks/plan.md)), so these are predictions, not measurements.
#
# ## Which mesh, then?
#
# Begin with what fits. For a model of 8 billion parameters on the same eight devices,
# a v5e has 16 GiB:

# %%
def per_device(mesh):
    state = fmjax.shardings(fmjax.load_experiment(large, ["mesh.fsdp=1", *mesh]))
    return state.groupby("part").bytes_per_device.sum() / 2**30


fits = pd.DataFrame({name: per_device(mesh) for name, mesh in meshes.items()}).T
fits["state"] = fits.sum(axis=1)
fits.style.format("{:,.1f}").set_caption(f"GiB of state on each of 8 devices, {large}")

# %% [markdown]
# 1. **data** while the whole state and the activations fit: the least communication, and all of it at the
#    end of the step.
# 2. **ZeRO-1** when the optimizer's state does not fit: one more gather of the parameters in a step.
# 3. **fsdp** when the parameters do not fit. It scales as far as the batch does: each device needs
#    at least one row, and enough tokens to hide the gathers.
# 4. **tensor** beside fsdp, among devices with fast links (2 to 8), when the rows run out or a layer's
#    activations do not fit.
#
# `fmjax plan CONFIG --chip v5e --chips 256 --search` tries such meshes, with microbatches and
# rematerialization, and ranks them. The axes `context`, `expert` and `stage` divide the length, the
# experts and the layers: see [Several devices](../docs/tasks/several_devices.md).
