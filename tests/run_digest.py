"""What a run has come to, as one hash."""

import hashlib
import json
import re
from pathlib import Path

_LEFT_OUT = (
    "^time$|seconds|per_second|mfu$|^goodput$|^waiting_for_data$|^device_memory"
    "|^unigram"
)


def run_digest(run_dir: Path) -> str:
    """Of the last checkpoint's arrays, the data's position and all metrics.

    The arrays are those of the whole state: parameters, optimizer, counters. Metrics
    that are timings are left out.
    """
    last = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = sorted((last / "digests").glob("*.json"))
    arrays = [row for file in files for row in json.loads(file.read_bytes())["value"]]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    metrics = [
        {name: v for name, v in line.items() if not re.search(_LEFT_OUT, name)}
        for line in map(json.loads, lines)
    ]
    data = json.loads((last / "data" / "metadata").read_bytes())["value"]
    told = json.dumps([last.name, sorted(arrays), metrics, data["iterator"]])
    return hashlib.sha256(told.encode()).hexdigest()
