"""What verification costs: a state saved and restored with digests and without.

    python -m benchmarks.checkpoints --gigabytes 1

Saves and restores a state in turns, by Orbax as fmjax calls it and by fmjax, and trains
a small model with a checkpoint every so many steps and with none. Prints medians, and
the ratios between them, which carry over between machines as seconds do not.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from fmjax.training.checkpoints import Checkpoints
from fmjax.training.state import State


def state_of(gigabytes: float) -> State:
    """Parameters of a typical shape, and as many again twice for an optimizer."""
    layers = max(1, round(gigabytes * 1e9 / 3 / 4 / (1024 * 4096)))
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1024, 4096)).astype(np.float32)

    def tree(scale):
        return {
            f"layer_{i}": {"kernel": jnp.asarray(base * (scale + i))}
            for i in range(layers)
        }

    return State(jnp.int32(1), tree(1.0), {}, {"mu": tree(2.0), "nu": tree(3.0)})


class Orbax:
    """Orbax's own manager, with the same format and threads."""

    def __init__(self, folder: pathlib.Path):
        self._manager = ocp.CheckpointManager(
            folder,
            item_names=("state",),
            item_handlers={"state": ocp.PyTreeCheckpointHandler(use_compression=False)},
        )

    def save(self, state: State) -> None:
        """Starts a save."""
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(_tree(state)))
        self._manager.save(1, args=args)

    def wait(self) -> None:
        """Waits for it."""
        self._manager.wait_until_finished()

    def restore(self, shapes: State) -> None:
        """Reads it back."""
        tree = _tree(shapes)
        args = ocp.args.PyTreeRestore(
            tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree)
        )
        found = self._manager.restore(1, args=ocp.args.Composite(state=args))
        jax.block_until_ready(found["state"])

    def close(self) -> None:
        """Ends its threads."""
        self._manager.close()


class Fmjax:
    """fmjax's checkpoints: the same, with digests, and compared when read."""

    def __init__(self, folder: pathlib.Path):
        self._checkpoints = Checkpoints(folder)

    def save(self, state: State) -> None:
        """Starts a save."""
        self._checkpoints.save(state, {}, {})

    def wait(self) -> None:
        """Waits for it."""
        self._checkpoints.wait()

    def restore(self, shapes: State) -> None:
        """Reads it back, and compares."""
        jax.block_until_ready(self._checkpoints.restore(shapes, 1).state.params)

    def close(self) -> None:
        """Ends its threads."""
        self._checkpoints.close()


def _tree(state: State) -> dict:
    return {"params": state.params, "opt_state": state.opt_state}


def timed(act: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def measure(gigabytes: float, rounds: int, folder: pathlib.Path) -> dict[str, dict]:
    """Medians, in seconds, by contender and what is timed."""
    state = state_of(gigabytes)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    seconds: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        order = (Orbax, Fmjax) if number % 2 else (Fmjax, Orbax)
        for kind in order:
            place = folder / f"{kind.__name__}{number}"
            contender = kind(place)
            times = {"save returns": timed(lambda: contender.save(state))}  # noqa: B023
            times["save is done"] = times["save returns"] + timed(contender.wait)
            # Otherwise writing back what is cached disturbs whoever comes next.
            os.sync()
            times["restore"] = timed(lambda: contender.restore(shapes))  # noqa: B023
            contender.close()
            shutil.rmtree(place)
            if number:  # The first warms up.
                for name, value in times.items():
                    every = seconds.setdefault(kind.__name__, {})
                    every.setdefault(name, []).append(value)
    return {
        kind: {name: statistics.median(values) for name, values in every.items()}
        for kind, every in seconds.items()
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=pathlib.Path, help="where to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(args.gigabytes, args.rounds, pathlib.Path(folder))
    print(f"{args.gigabytes} GB on {jax.devices()[0].device_kind}, medians of "
          f"{args.rounds}")  # fmt: skip
    print(f"{'':14}{'Orbax':>10}{'fmjax':>10}{'ratio':>8}")
    for name, alone in found["Orbax"].items():
        ours = found["Fmjax"][name]
        print(f"{name:14}{alone:9.3f}s{ours:9.3f}s{ours / alone:8.2f}")


if __name__ == "__main__":
    main()
