"""The seconds of a step of Muon over those of AdamW, in turns in one process.

python configs/papers/muon/step_time.py ../shared/data/text/tinyshakespeare.txt
"""

import argparse
import statistics
import time

import jax

import fmjax
from fmjax.sharding.mesh import global_batch, local_rows, on_mesh
from fmjax.training.setup import set_up
from fmjax.training.start import Initialized
from fmjax.training.vocab_size import with_vocab_size

CONFIG = "papers/nanogpt_shakespeare/cpu.gin"
OPTIMIZERS = {
    "adamw": [],
    "muon": ["experiment.optimizer=@muon()", "muon.schedule=@cosine()"],
}
STEPS = 10  # of a turn


def main() -> None:
    """Prints the medians of all processors' seconds a step, and of their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", help="the file of Shakespeare's works")
    parser.add_argument("--turns", type=int, default=20)
    args = parser.parse_args()
    steps = {name: stepper(args.text, more) for name, more in OPTIMIZERS.items()}
    found = {name: [] for name in steps}
    for _ in range(args.turns + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            found[name].append((time.process_time() - began) / STEPS)
    turns = {name: seconds[1:] for name, seconds in found.items()}
    for name, seconds in turns.items():
        print(f"{name}: {statistics.median(seconds):.4f} s a step")
    ratios = [m / a for m, a in zip(turns["muon"], turns["adamw"])]
    print(f"muon / adamw: {statistics.median(ratios):.2f}")


def stepper(text: str, bindings: list[str]):
    """A function that trains STEPS steps."""
    found = fmjax.load_experiment(CONFIG, [f"TEXT_FILE={text}", *bindings])
    experiment = with_vocab_size(found)
    setup = set_up(experiment, Initialized())
    run = experiment.train
    rows = local_rows(setup.sharding, run.batch_size)
    batches = experiment.data.train_batches(run.batch_size, rows, run.seed)
    with on_mesh(setup.mesh, setup.rules):
        state = setup.plan.init()

    def train():
        nonlocal state
        with on_mesh(setup.mesh, setup.rules):
            for _ in range(STEPS):
                batch = global_batch(next(batches), setup.sharding, run.batch_size)
                state, _ = setup.step(state, batch, 0)
            jax.block_until_ready(state)

    return train


if __name__ == "__main__":
    main()
