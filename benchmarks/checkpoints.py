"""What it costs that no step is lost: digests of checkpoints, and guards of steps.

    python -m benchmarks.checkpoints --gigabytes 1

Saves and restores a state in turns, by Orbax as fmjax calls it and by fmjax. Trains the
quickstart's model in turns: the jitted step alone, and by `fmjax.train` with its lock,
its watchdog and its judgement of every step. Prints medians, and the ratios between
them, which carry over between machines as seconds do not.
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
from fmjax import runs
from fmjax.experiment import Experiment
from fmjax.sharding.mesh import batch_sharding, global_batch, local_rows, on_mesh
from fmjax.training import metrics
from fmjax.training.bad_steps import BadSteps
from fmjax.training.checkpoints import Checkpoints
from fmjax.training.state import State, plan_state
from fmjax.training.step import make_train_step


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


LINE = 10  # steps that are timed together


def measure_steps(steps: int, rounds: int, folder: pathlib.Path) -> dict[str, float]:
    """Median seconds of a step, by whether it is guarded."""
    bindings = [
        f"train.steps={steps}", f"train.log_every={LINE}", "train.eval_every=0",
        "train.checkpoint_every=0", "train.sample_prompt=None", "train.eval_batches=1",
        "bad_steps.not_finite='skip'", "bad_steps.spikes='skip'",
        "experiment.bad_steps=@bad_steps()", "cosine.warmup_steps=5",
    ]  # fmt: skip
    guarded = fmjax.load_experiment("quickstart.gin", bindings)
    bare = dataclasses.replace(guarded, bad_steps=BadSteps(not_finite="off"))
    seconds: dict[str, list[float]] = {"bare": [], "guarded": []}
    for number in range(rounds):
        run_dir = folder / f"run{number}"
        turns = {
            "bare": lambda: bare_steps(bare),
            "guarded": lambda: guarded_steps(guarded, run_dir),  # noqa: B023
        }
        for name in sorted(turns, reverse=bool(number % 2)):
            seconds[name] += turns[name]()
    return {name: statistics.median(values) for name, values in seconds.items()}


def guarded_steps(experiment: Experiment, run_dir: pathlib.Path) -> list[float]:
    """Seconds a step, of each line that a run writes but the first."""
    runs.train(experiment, run_dir)
    lines = metrics.read(run_dir, "train")
    return [line["step_seconds"] for line in lines if line["step"] > LINE]


def bare_steps(experiment: Experiment) -> list[float]:
    """The same of nothing but the steps and their batches."""
    run = experiment.train
    mesh, rules = experiment.mesh.build(), experiment.mesh.all_rules
    sharding = batch_sharding(mesh, rules)
    plan = plan_state(
        experiment.objective,
        experiment.optimizer,
        mesh,
        rules,
        train_steps=run.steps,
        seed=run.seed,
        bad_steps=experiment.bad_steps,
    )
    step = make_train_step(
        experiment.objective,
        plan,
        lambda step: experiment.optimizer.learning_rate(step, run.steps),
        mesh,
        rules,
        seed=run.seed,
    )
    experiment.data.prepare()
    rows = local_rows(sharding, run.batch_size)
    batches = experiment.data.train_batches(run.batch_size, rows, run.seed)
    seconds = []
    with on_mesh(mesh, rules):
        state = plan.init()
        for _ in range(run.steps // LINE):
            began = time.perf_counter()
            for _ in range(LINE):
                batch = global_batch(next(batches), sharding, run.batch_size)
                state, found = step(state, batch, plan.freezing.phase(0))
            jax.block_until_ready(found)
            seconds.append((time.perf_counter() - began) / LINE)
    batches.close()
    return seconds[1:]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=pathlib.Path, help="where to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measure(args.gigabytes, args.rounds, pathlib.Path(folder))
        steps = measure_steps(args.steps, args.rounds, pathlib.Path(folder))
    print(f"{args.gigabytes} GB on {jax.devices()[0].device_kind}, medians of "
          f"{args.rounds}")  # fmt: skip
    print(f"{'':14}{'Orbax':>10}{'fmjax':>10}{'ratio':>8}")
    for name, alone in found["Orbax"].items():
        ours = found["Fmjax"][name]
        print(f"{name:14}{alone:9.3f}s{ours:9.3f}s{ours / alone:8.2f}")
    print(f"a step: bare {steps['bare']:.4f}s, guarded {steps['guarded']:.4f}s, ratio "
          f"{steps['guarded'] / steps['bare']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
