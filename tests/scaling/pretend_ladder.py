"""Stands in for `fmjax train` of a ladder: the loss is a law of N and of the steps.

    python pretend_ladder.py train CONFIG NAME=VALUE … --run_dir DIR

It writes the checkpoints that `fmjax.fork` copies, as empty folders. $PRETEND_SIZES
maps widths to N, and $PRETEND_STARTS is a file to which each start adds a line.
"""

import json
import os
import pathlib
import sys
import time

LAW = dict(E=1.5, A=50.0, B=400.0, alpha=0.35, beta=0.4)
TOKENS = 512  # of a step


def loss(parameters: float, steps: int) -> float:
    tokens = TOKENS * steps
    terms = LAW["A"] / parameters ** LAW["alpha"] + LAW["B"] / tokens ** LAW["beta"]
    return LAW["E"] + terms


def main(words: list[str]) -> int:
    run_dir = pathlib.Path(words[words.index("--run_dir") + 1])
    bindings = dict(word.split("=", 1) for word in words if "=" in word)
    steps = int(bindings["train.steps"])
    width = bindings["transformer.embed_dim"]
    begun = sorted(int(p.name) for p in run_dir.glob("checkpoints/*"))
    with open(os.environ["PRETEND_STARTS"], "a") as starts:
        starts.write(json.dumps([run_dir.name, steps, begun, words]) + "\n")
    if os.environ.get("PRETEND_FAILS") == run_dir.name:
        print("fmjax: no room", file=sys.stderr)
        return 2
    every = int(bindings.get("train.checkpoint_every", steps))
    for step in range(every, steps + 1, every):
        (run_dir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
    (run_dir / "config.gin").write_text("")
    value = loss(json.loads(os.environ["PRETEND_SIZES"])[width], steps)
    lines = (
        {"step": steps, "split": "train", "loss": value, "tokens_seen": TOKENS * steps},
        {"step": steps, "split": "validation", "loss": value},
    )
    with (run_dir / "metrics.jsonl").open("a") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
    event = {"time": time.time(), "kind": "finished", "step": steps, "text": ""}
    (run_dir / "events.jsonl").write_text(json.dumps(event) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
