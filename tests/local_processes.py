"""Runs that train in processes of this machine, as seen from outside."""

import json
import pathlib
import socket

import numpy as np


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def children(pid: int) -> list[int]:
    """The processes that a process started, in that order."""
    text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def losses(run_dir: pathlib.Path) -> list[float]:
    """Those of training so far, also while the run writes a line."""
    file = run_dir / "metrics.jsonl"
    if not file.exists():
        return []
    whole = [line for line in file.read_text().splitlines(True) if line.endswith("\n")]
    lines = map(json.loads, whole)
    return [line["loss"] for line in lines if line["split"] == "train"]


def assert_same_losses(here: pathlib.Path, there: pathlib.Path, steps: int) -> None:
    """Two runs have the same losses but for rounding, which grows with the steps."""
    one, other = losses(here), losses(there)
    assert len(one) == len(other) == steps
    np.testing.assert_allclose(one[:20], other[:20], rtol=1e-5)
    np.testing.assert_allclose(one[-1], other[-1], rtol=1e-2)
