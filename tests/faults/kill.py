"""Kills a run again and again, and compares what is left with a run left alone.

    python -m tests.faults.kill --n 100

A run of the tiny config is started, killed with SIGKILL at a random moment, and started
again, until that has happened n times; then it may end. Every third kill comes at a
random time, the others close to a moment that is worth it: a save, the steps after it,
the building of a cache, a restore. Prints what was hit, and ends with 1 if the last
checkpoint or the losses of any step differ from those of a run that nothing disturbed.
"""

import argparse
import collections
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence

from tests.run_digest import run_digest

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_SECONDS = 300
# Saves are frequent, so that many are hit; the last step is not a multiple.
BINDINGS = ("train.steps=303", "train.checkpoint_every=10", "train.log_every=1")
# A run of adapters, with dropout, on the codes of another run's weights.
ADAPTERS = (
    "experiment.peft=@peft()", "peft.methods=(@lora(),)", "lora.rank=2",
    "lora.dropout=0.2", "peft.coding=@nf4()", "nf4.paths=('**/mlp/out',)",
    "experiment.init_from=(@init_from(),)",
)  # fmt: skip
MOMENTS = ("any", "save", "steps", "restore", "cache")


class Run:
    """A run directory and the command that trains in it."""

    def __init__(
        self,
        folder: pathlib.Path,
        text: pathlib.Path,
        bindings: Sequence[str] = BINDINGS,
    ):
        self.run_dir = folder / "run"
        self.cache = folder / "cache"
        self._log = folder / "log.txt"
        self._command = [
            sys.executable, "-m", "fmjax", "train", ROOT / "tests" / "e2e" / "tiny.gin",
            f"TEXT_FILE={text}", *bindings, "--run_dir", self.run_dir,
        ]  # fmt: skip

    def start(self) -> subprocess.Popen:
        """Starts the command."""
        return subprocess.Popen(
            list(map(str, self._command)),
            env=os.environ | {"JAX_PLATFORMS": "cpu", "FMJAX_CACHE": str(self.cache)},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=self._log.open("w"),
        )

    def finish(self) -> None:
        """Runs it to its end."""
        process = self.start()
        if code := process.wait(timeout=DEADLINE_SECONDS):
            raise AssertionError(f"ended with {code}:\n{self._log.read_text()}")

    def steps(self) -> int:
        """Steps that are written down."""
        try:
            return (self.run_dir / "metrics.jsonl").read_bytes().count(b'"train"')
        except FileNotFoundError:
            return 0

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(self.run_dir.glob("checkpoints/*.orbax-checkpoint-tmp*"))

    def is_caching(self) -> bool:
        """Whether the cache is being built: its folder is there, the run's is not."""
        return self.cache.exists() and not self.run_dir.exists()

    def is_locked(self) -> bool:
        """Whether the run is about to restore, or further."""
        return (self.run_dir / "lock.json").exists()


def kill_once(run: Run, moment: str, rng: random.Random, seconds: float) -> bool:
    """Starts a run and kills it; whether it was still alive then."""
    process = run.start()
    began, steps = time.monotonic(), run.steps()
    stale = run.is_locked()
    wanted = {
        "any": lambda: True,
        "save": run.is_saving,
        "steps": lambda: run.steps() > steps + rng.randrange(1, 60),
        "restore": lambda: run.is_locked() and not stale,
        "cache": run.is_caching,
    }[moment]
    if moment == "restore" and stale:
        # The lock of the last one that was killed is still there.
        before = (run.run_dir / "lock.json").stat().st_mtime_ns
        wanted = lambda: (run.run_dir / "lock.json").stat().st_mtime_ns != before  # noqa: E731
    while process.poll() is None and time.monotonic() < began + DEADLINE_SECONDS:
        try:
            if wanted():
                break
        except FileNotFoundError:
            pass
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, seconds) if moment == "any" else rng.expovariate(50))
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def torment(
    count: int, folder: pathlib.Path, seed: int = 0, adapters: bool = False
) -> dict[str, int]:
    """Kills a run so many times, and lets it end.

    Args:
      count: how often.
      folder: of all files.
      seed: of the moments.
      adapters: whether it trains adapters on another run, which is not disturbed.

    Returns:
      How often each moment was hit.

    Raises:
      AssertionError: it ends otherwise than a run that was left alone.
    """
    text = folder / "text.txt"
    text.write_text(pathlib.Path(textwrap.__file__).read_text())
    (folder / "whole").mkdir(parents=True)
    bindings = BINDINGS
    if adapters:
        base = Run(folder, text, ("train.steps=20",))
        base.finish()
        bindings = (*BINDINGS, *ADAPTERS, f"init_from.run='{base.run_dir}'")
    whole = Run(folder / "whole", text, bindings)
    whole.finish()
    began = time.monotonic()
    shutil.rmtree(whole.run_dir)
    whole.finish()
    seconds = time.monotonic() - began

    rng, hits = random.Random(seed), collections.Counter()
    (folder / "killed").mkdir()
    killed = Run(folder / "killed", text, bindings)
    finished = 0
    while hits.total() < count:
        moment = "any" if hits.total() % 3 == 0 else rng.choice(MOMENTS[1:])
        if moment == "cache":
            # Only a run that has none builds one.
            shutil.rmtree(killed.cache, ignore_errors=True)
            shutil.rmtree(killed.run_dir, ignore_errors=True)
        if kill_once(killed, moment, rng, seconds):
            hits[moment] += 1
        elif killed.steps():
            compare(killed, whole)
            finished += 1
            shutil.rmtree(killed.run_dir)
    killed.finish()
    compare(killed, whole)
    return dict(hits) | {"ends compared": finished + 1}


def compare(run: Run, whole: Run) -> None:
    """Raises AssertionError unless two runs have ended alike, to the bit."""
    if run_digest(run.run_dir) != run_digest(whole.run_dir):
        raise AssertionError(f"{run.run_dir} differs from {whole.run_dir}")


def main() -> int:
    """Kills as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adapters", action="store_true", help="train adapters")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        hits = torment(args.n, pathlib.Path(folder), args.seed, args.adapters)
        minutes = (time.monotonic() - began) / 60
    print(f"{args.n} kills in {minutes:.0f} minutes: {hits}; every end was the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
