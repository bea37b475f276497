"""Stands in for `fmjax train` and `eval`: the loss is a formula of the bindings.

    python pretend_fmjax.py train CONFIG NAME=VALUE … --run_dir DIR
    python pretend_fmjax.py eval DIR NAME=VALUE … --json FILE

Every 10 of 40 steps it "validates", and continues after a kill from the last of these.
$PRETEND_STARTS is a file to which each start adds a line.
"""

import json
import math
import os
import pathlib
import signal
import sys
import time


def loss(rate: float, seed: int, step: int) -> float:
    """Falls with the steps; lowest at a rate of 10^-2.5."""
    return (math.log10(rate) + 2.5) ** 2 + 0.01 * seed + 1.0 / step


def evaluate(words: list[str]) -> int:
    """The loss of the last validation and what data.shift adds; fails at -1."""
    run_dir, out = pathlib.Path(words[1]), pathlib.Path(words[-1])
    shift = float(words[2].removeprefix("data.shift="))
    with open(os.environ["PRETEND_STARTS"], "a") as starts:
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        name = f"eval {run_dir.name}"
        starts.write(json.dumps([name, os.getppid(), time.time(), gpus]) + "\n")
    if shift < 0:
        print("fmjax: data.shift: expected more.", file=sys.stderr)
        return 2
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    out.write_text(json.dumps({"step": last["step"], "loss": last["loss"] + shift}))
    return 0


def main(words: list[str]) -> int:
    if words[0] == "eval":
        return evaluate(words)
    run_dir = pathlib.Path(words[words.index("--run_dir") + 1])
    bindings = dict(
        word.split("=", 1) for word in words if "=" in word and "/" not in word
    )
    rate, seed = float(bindings["cosine.learning_rate"]), int(bindings["train.seed"])
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(os.environ["PRETEND_STARTS"], "a") as starts:
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        starts.write(json.dumps([run_dir.name, os.getppid(), time.time(), gpus]) + "\n")
    how = bindings.get("train.keep_last")
    if how == "3":
        raise MemoryError("no room")
    if how == "4":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "5":
        print("fmjax: train.keep_last = 5: expected something else.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    file = run_dir / "metrics.jsonl"
    done = len(file.read_text().splitlines()) * 10 if file.exists() else 0
    for step in range(done + 10, 41, 10):
        time.sleep(float(os.environ.get("PRETEND_SECONDS", "0")))
        value = loss(rate, seed, step)
        line = {"step": step, "split": "validation", "loss": value, "accuracy": -value}
        with file.open("a") as out:
            out.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
