"""The benchmarks run; what they measure is asserted nowhere."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_families_are_measured_side_by_side():
    # The program itself refuses models that differ in size or in the first loss.
    arguments = ["--families", "gpt2", "vit", "--size", "smoke", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, FOLDER / "families.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "│" in line]
    assert [row[1] for row in rows] == ["fmjax", "PyTorch"] * 2
