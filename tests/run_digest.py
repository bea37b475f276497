"""What a run has come to, as one hash."""

import hashlib
import json
from pathlib import Path


def run_digest(run_dir: Path) -> str:
    """Of the last checkpoint's arrays, the data's position and all losses.

    The arrays are those of the whole state: parameters, optimizer, counters.
    """
    last = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    arrays = json.loads((last / "digests" / "0.json").read_bytes())["value"]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    losses = [(v["step"], v["split"], v["loss"]) for v in map(json.loads, lines)]
    data = json.loads((last / "data" / "metadata").read_bytes())["value"]
    told = json.dumps([last.name, sorted(arrays), losses, data["iterator"]])
    return hashlib.sha256(told.encode()).hexdigest()
