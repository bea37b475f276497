"""Overhead of fault tolerance: digests of checkpoints, detection of bad steps, logs.

    python -m benchmarks.checkpoints --gigabytes 1

Saves and restores a state alternately with Orbax alone and with fmjax. Alternates steps
of the quickstart with and without detection of bad steps. Compares the steps of a tiny
model alone with a whole run (lock, watchdog, logs). Prints medians, and ratios between
them, which are comparable between machines, as seconds are not.
"""

import argparse
import dataclasses
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

import fmjax
from fmjax.run import train as runs
from fmjax.sharding.mesh import batch_sharding, global_batch, local_rows, on_mesh
from fmjax.training.bad_steps import BadSteps
from fmjax.training.checkpoint.checkpoints import Checkpoints
from fmjax.training.experiment import Experiment
from fmjax.training.reporting import metrics
from fmjax.training.state import State, plan_state
from fmjax.training.step import make_train_step


def state_of(gigabytes: float) -> State:
    """A state with parameters of typical shapes and two optimizer moments for each."""
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
    """Orbax's checkpoint manager alone, with the same format and threads."""

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
        """Waits for the save."""
        self._manager.wait_until_finished()

    def restore(self, shapes: State) -> None:
        """Restores the state."""
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
    """fmjax's checkpoints: Orbax with digests, which are checked on restore."""

    def __init__(self, folder: pathlib.Path):
        self._checkpoints = Checkpoints(folder)

    def save(self, state: State) -> None:
        """Starts a save."""
        self._checkpoints.save(state, {}, {})

    def wait(self) -> None:
        """Waits for the save."""
        self._checkpoints.wait()

    def restore(self, shapes: State) -> None:
        """Restores the state and checks its digests."""
        jax.block_until_ready(self._checkpoints.restore(shapes, 1).state.params)

    def close(self) -> None:
        """Ends its threads."""
        self._checkpoints.close()


def _tree(state: State) -> dict:
    return {"params": state.params, "opt_state": state.opt_state}


def timed(act: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def measure(gigabytes: float, rounds: int, folder: pathlib.Path) -> dict[str, dict]:
    """Median seconds by contender and operation.

    Args:
      gigabytes: size of the state.
      rounds: timed repetitions of each contender.
      folder: where to write.
    """
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
            # Otherwise write-back of cached pages would slow down what is timed next.
            os.sync()
            times["restore"] = timed(lambda: contender.restore(shapes))  # noqa: B023
            contender.close()
            shutil.rmtree(place)
            if number:  # The first round is a warm-up.
                for name, value in times.items():
                    every = seconds.setdefault(kind.__name__, {})
                    every.setdefault(name, []).append(value)
    return {
        kind: {name: statistics.median(values) for name, values in every.items()}
        for kind, every in seconds.items()
    }


LINE = 10  # steps that are timed together, as in a line of metrics
TINY = (
    "transformer.num_layers=1", "transformer.embed_dim=16", "transformer.num_heads=2",
    "transformer.num_kv_heads=1", "transformer.mlp_dim=32", "gpt.max_length=32",
    "data.length=32", "train.batch_size=1",
)  # fmt: skip


def quickstart(*bindings: str) -> Experiment:
    """The experiment of the quickstart, with detection of bad steps."""
    return fmjax.load_experiment(
        "quickstart.gin",
        [
            f"train.log_every={LINE}", "train.eval_every=0", "train.eval_batches=1",
            "train.checkpoint_every=0", "sample.prompt=None",
            "bad_steps.not_finite='skip'", "bad_steps.spikes='skip'",
            "experiment.bad_steps=@bad_steps()", "cosine.warmup_steps=5", *bindings,
        ],
    )  # fmt: skip


class Steps:
    """The jitted step of an experiment with its batches, without the rest of a run."""

    def __init__(self, experiment: Experiment):
        run = experiment.train
        self._mesh, self._rules = experiment.mesh.build(), experiment.mesh.all_rules
        self._sharding = batch_sharding(self._mesh, self._rules)
        self._size = run.batch_size
        parts = (experiment.objective, experiment.optimizer, self._mesh, self._rules)
        self._plan = plan_state(
            *parts, train_steps=run.steps, seed=run.seed, bad_steps=experiment.bad_steps
        )
        self._step = make_train_step(
            experiment.objective,
            self._plan,
            lambda step: experiment.optimizer.learning_rate(step, run.steps),
            self._mesh,
            self._rules,
            seed=run.seed,
        )
        experiment.data.prepare()
        rows = local_rows(self._sharding, self._size)
        self._batches = experiment.data.train_batches(self._size, rows, run.seed)
        with on_mesh(self._mesh, self._rules):
            self._state = self._plan.init()

    def take(self, count: int) -> None:
        """Takes `count` steps and waits for the last."""
        with on_mesh(self._mesh, self._rules):
            for _ in range(count):
                batch = global_batch(next(self._batches), self._sharding, self._size)
                phase = self._plan.freezing.phase(0)
                self._state, found = self._step(self._state, batch, phase)
            jax.block_until_ready(found)

    def close(self) -> None:
        """Ends the threads that read data."""
        self._batches.close()


def measure_judgement(pairs: int) -> tuple[float, float]:
    """Overhead of bad-step detection.

    Returns:
      Median seconds of a step without it; median ratio of a step with it to the
      neighbouring step without it.
    """
    judged = quickstart(f"train.steps={pairs}")
    bare = dataclasses.replace(judged, bad_steps=BadSteps(not_finite="off"))
    contenders = {"bare": Steps(bare), "judged": Steps(judged)}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(pairs + 2):
        for name in sorted(contenders, reverse=bool(number % 2)):
            taken = timed(lambda: contenders[name].take(1))  # noqa: B023
            if number > 1:  # The first two rounds compile and warm up.
                seconds[name].append(taken)
    for contender in contenders.values():
        contender.close()
    ratios = [b / a for a, b in zip(seconds["bare"], seconds["judged"])]
    return statistics.median(seconds["bare"]), statistics.median(ratios)


def measure_loop(steps: int, rounds: int, folder: pathlib.Path) -> float:
    """Seconds per step that a run adds to the jitted step.

    The model is so small that the overhead is larger than the noise of its step times.
    """
    tiny = quickstart(*TINY, f"train.steps={steps}")
    added = []
    for number in range(rounds):
        runs.train(tiny, folder / f"run{number}")
        lines = metrics.read(folder / f"run{number}", "train")
        whole = [line["step_seconds"] for line in lines if line["step"] > LINE]
        bare = Steps(tiny)
        bare.take(LINE)
        alone = [timed(lambda: bare.take(LINE)) / LINE for _ in whole]  # noqa: B023
        bare.close()
        added.append(statistics.median(whole) - statistics.median(alone))
    return statistics.median(added)


def main() -> None:
    """Runs all measurements and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=pathlib.Path, help="where to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        print_saves(args, measure(args.gigabytes, args.rounds, pathlib.Path(folder)))
        added = measure_loop(args.steps, args.rounds, pathlib.Path(folder))
    bare, ratio = measure_judgement(args.steps // 2)
    print(
        f"a step of the quickstart: {bare:.4f}s; judging it, ratio {ratio:.3f}; lock, "
        f"watchdog and logs, {added * 1e3:.2f} ms, ratio {1 + added / bare:.3f}"
    )


def print_saves(args: argparse.Namespace, found: dict[str, dict]) -> None:
    """Prints a line for each operation that was timed."""
    print(f"{args.gigabytes} GB on {jax.devices()[0].device_kind}, medians of "
          f"{args.rounds}")  # fmt: skip
    print(f"{'':14}{'Orbax':>10}{'fmjax':>10}{'ratio':>8}")
    for name, alone in found["Orbax"].items():
        ours = found["Fmjax"][name]
        print(f"{name:14}{alone:9.3f}s{ours:9.3f}s{ours / alone:8.2f}", flush=True)


if __name__ == "__main__":
    main()
