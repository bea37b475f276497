"""Gradients of a loss of random labels: of adapters of peft, and of ours by its names.

A run whose adapters are the gradients of another's is exported, so that the gradients
have the names and the layout of peft's tensors.
"""

import shutil

import jax
import numpy as np
import peft
import torch
from flax import traverse_util
from safetensors.torch import load_file

import fmjax
from fmjax.inference.inputs import inputs_of
from fmjax.interop.peft.export_adapter import export_adapter
from fmjax.models.call_arguments import call_arguments
from fmjax.training.checkpoint.checkpoints import save_model
from fmjax.training.checkpoint.saved_state import SavedState
from fmjax.training.state import abstract_variables


def labels(shape):
    """A random class for each of logits [..., classes]."""
    return np.random.default_rng(3).integers(shape[-1], size=shape[:-1])


def of_peft(model, arrays, where=None):
    """The gradients of peft's model, in float64 where transformers can.

    Args:
      model: peft's.
      arrays: arguments of its call.
      where: mask of the logits that count, those of the last tokens; None for all.

    Returns:
      The gradients by the names of its files; of virtual tokens by the names in the
      module that makes them.
    """
    # In place, but what the caller compares is computed in float32.
    dtype = next(model.parameters()).dtype
    # Where a window holds nothing but padding, transformers takes the softmax of the
    # least float64 in float32, which is NaN.
    if getattr(model.get_base_model().config, "sliding_window", None) is None:
        model.double()
        arrays = {
            name: x.double() if x.is_floating_point() else x
            for name, x in arrays.items()
        }
    logits = model(**arrays).logits
    if where is not None:
        logits = logits[:, -where.shape[1] :]
    chosen = torch.tensor(labels(logits.shape))
    if where is not None:
        logits, chosen = logits[where], chosen[where]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), chosen.flatten())
    loss.backward()
    of = model
    if virtual := model.active_peft_config.is_prompt_learning:
        (of,) = model.prompt_encoder.values()
    found = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in of.named_parameters(remove_duplicate=False)
    }
    model.zero_grad()
    model.to(dtype)
    if virtual:
        return found
    return peft.get_peft_model_state_dict(model, found, save_embedding_layers=False)


def of_a_run(run_dir, arrays, where, folder):
    """The gradients of a run of adapters, by the names of peft's files.

    Args:
      run_dir: the run.
      arrays: arguments of its call.
      where: mask of the logits that count; None for all.
      folder: where files are written.
    """
    gradients = gradients_by_path(fmjax.load(run_dir), arrays, where)
    shutil.copytree(
        run_dir, folder / "run", ignore=shutil.ignore_patterns("checkpoints")
    )
    save_model(
        folder / "run",
        traverse_util.unflatten_dict(gradients, sep="/"),
        references=SavedState(run_dir).references,
    )
    export_adapter(folder / "run", folder / "gradients")
    return load_file(folder / "gradients" / "adapter_model.safetensors")


def gradients_by_path(run, arrays, where):
    """The gradients of what is trained, and what else the run adds, by path."""
    axes, shapes = abstract_variables(run.config.objective)
    plan = run.config.peft.plan(axes["params"], shapes["params"])
    flat = traverse_util.flatten_dict(run.params, sep="/")
    own = {path: x for path, x in flat.items() if path not in plan.frozen}
    trained = {
        path: x
        for path, x in own.items()
        # A head that was untied for its adapter is the base's.
        if path not in plan.never_trained and f"{path}_lora/a" not in own
    }
    read = call_arguments(run.model, inputs_of(run.model, arrays))

    def loss(trained):
        params = traverse_util.unflatten_dict(flat | trained, sep="/")
        out = run.model.apply({"params": params, **run.extra}, **read)
        logits = out["logits"] if "logits" in out else out["class_logits"]
        chosen = labels(logits.shape)[..., None]
        scores = jax.nn.log_softmax(logits)
        scores = jax.numpy.take_along_axis(scores, chosen, axis=-1)[..., 0]
        return -scores.mean(where=where)

    return own | jax.jit(jax.grad(loss))(trained)


def assert_same(ours, theirs, num_experts=1):
    """Asserts |a - b| ≤ 1e-4 · max|b| for each tensor of theirs.

    Args:
      ours: gradients by name; of layers that peft does not adapt there may be more.
      theirs: gradients by name.
      num_experts: of the model.
    """
    assert ours.keys() >= theirs.keys()
    for name, expected in theirs.items():
        found = summed(name, ours[name], expected, num_experts)
        largest = expected.abs().max()
        assert largest > 0, name
        assert (found - expected).abs().max() <= 1e-4 * largest, name


def summed(name, ours, theirs, num_experts):
    """The gradient of a tensor of peft, given those of its copies here.

    Parts of a fused tensor have an A each, which are the same at first. Their gradients
    differ, so that an export has them one below the other, beside a block-diagonal B.
    The gradient of the one A is the sum.

    Args:
      name: of the tensor.
      ours: the gradients as they are exported.
      theirs: the gradient of peft's tensor.
      num_experts: of the model.
    """
    copies = ours.numel() // theirs.numel()
    if ".lora_A." in name:
        experts = num_experts if ".experts." in name else 1
        return ours.view(experts, copies, -1, ours.shape[-1]).sum(1).view(theirs.shape)
    if ".lora_B." in name:
        return ours.view(len(ours), copies, -1).sum(1)
    return ours
