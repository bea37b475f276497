"""Checks before a run starts or resumes: batch sizes and the data's fingerprint."""

from fmjax.errors import UserError
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
