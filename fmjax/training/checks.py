"""Checks before a run starts or resumes: batch sizes and the data's fingerprint."""

from typing import Any

from fmjax.errors import UserError
from fmjax.models.contracts import Generates, GeneratesFromText
from fmjax.models.layers.virtual_tokens import PROMPT
from fmjax.optim.peft.peft import PeftPlan
from fmjax.sharding.mesh import batch_axes, batch_shards


def check_divisible(name, size, microbatches, mesh, rules) -> None:
    """Raises a UserError unless the shards of the batch axis divide a microbatch.

    Args:
      name: the gin binding that sets the size.
      size: rows of the global batch.
      microbatches: number of microbatches.
      mesh: of the run.
      rules: logical to mesh axes.
    """
    shards = batch_shards(mesh, rules)
    if size % (shards * microbatches):
        cut = [axis for axis in batch_axes(rules) if mesh.shape[axis] > 1]
        axes = " × ".join(f"mesh.{axis}" for axis in cut) or "one device"
        by = f"the mesh cuts the batch in {shards} ({axes})"
        if microbatches > 1:
            by += f", train.microbatches = {microbatches}"
        raise UserError(
            f"{name} = {size} is not divisible: {by}. Nearest that is: "
            f"{-(-size // (shards * microbatches)) * shards * microbatches}."
        )


def check_same_data(saved: dict, fingerprint: str, allowed: bool) -> None:
    """Raises a UserError if the data changed since the checkpoint, unless allowed.

    Args:
      saved: the checkpoint's "data" item.
      fingerprint: of the data now.
      allowed: whether changed data is accepted.
    """
    if saved["fingerprint"] != fingerprint and not allowed:
        raise UserError(
            "the data is not what this run was started with (its files, tokenizer or "
            f"preprocessing changed: fingerprint {fingerprint}, checkpoint "
            f"{saved['fingerprint']}). Start a new --run_dir, or add --override."
        )


def check_packed_prompt(peft: PeftPlan | None, data: Any, model: Any) -> None:
    """Raises a UserError if texts of a packed row would not see a prompt as alone.

    In an encoder the prompt reads the texts, and of several no one text; in a decoder
    with a window it is farther from the later ones.

    Args:
      peft: what is added to the model's parameters; None for nothing.
      data: of the run.
      model: of the run's objective.
    """
    added = () if peft is None else peft.added
    prompts = [path for path in added if path.rpartition("/")[0].endswith(PROMPT)]
    if not prompts or getattr(data, "rows", None) != "packed":
        return
    config = getattr(model, "transformer", None)
    causal = isinstance(model, Generates) and not isinstance(model, GeneratesFromText)
    if not causal or getattr(config, "window", None) is not None:
        raise UserError(
            f"data.rows = 'packed' with a prompt (peft.methods, {prompts[0]!r}): texts "
            f"that share a row of @{model.gin_name}() cannot each have it. Expected "
            "rows of one text, or @prefix()."
        )
