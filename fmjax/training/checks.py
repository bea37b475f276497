"""What must hold before a run begins, or goes on."""

from fmjax.errors import UserError
from fmjax.sharding.mesh import batch_axes, batch_shards


def check_divisible(name, size, microbatches, mesh, rules) -> None:
    """Raises a UserError unless the batch axis's shards divide each microbatch."""
    shards = batch_shards(mesh, rules)
    if size % (shards * microbatches):
        axes = " × ".join(f"mesh.{axis}" for axis in batch_axes(rules))
        by = f"the mesh cuts the batch in {shards} ({axes})"
        if microbatches > 1:
            by += f", train.microbatches = {microbatches}"
        raise UserError(
            f"{name} = {size} is not divisible: {by}. Nearest that is: "
            f"{-(-size // (shards * microbatches)) * shards * microbatches}."
        )


def check_same_data(saved: dict, fingerprint: str, allowed: bool) -> None:
    """Raises a UserError if the data changed since the checkpoint was made."""
    if saved["fingerprint"] != fingerprint and not allowed:
        raise UserError(
            "the data is not what this run was started with (its files, tokenizer or "
            f"preprocessing changed: fingerprint {fingerprint}, checkpoint "
            f"{saved['fingerprint']}). Start a new --run_dir, or add --override."
        )
