"""The fastest mesh, remat policy and attention blocks of models on 256 chips.

    python benchmarks/searches.py [NAME ...] [--quick]

Runs `fmjax plan --search` for rows of searches.json beside this file: those named, or
those without trials. The trials are kept there. With `--quick`, for TPUs, no machine
code is generated, and a row takes one to three minutes on two cores, otherwise a
quarter of an hour or more; rows of GPUs take three to ten. Nothing here is measured on
a chip.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from predicted_steps import config_of

from fmjax.sharding.chips import CHIPS

ROWS = pathlib.Path(__file__).with_suffix(".json")


def search(row: dict, quick: bool) -> list[dict]:
    """The trials of `fmjax plan --search`, the shortest step first.

    Args:
      row: as of `predicted_steps.plan`.
      quick: whether with `--quick`.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = pathlib.Path(folder) / "plan.json"
        # It ends with an error where the row as it is does not fit.
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "fmjax", "plan", str(config_of(row, folder))),
                *row["bindings"],
                *("--chip", row["chip"], "--chips", str(row["chips"])),
                *("--search", "--json", str(found)),
                *["--quick"] * quick,
            ],
            check=False,
        )
        if not found.exists():
            raise SystemExit(f"{row['name']}: exit code {ended.returncode}, no plan")
        return json.loads(found.read_text())["trials"]


def table_line(row: dict) -> str:
    """The best trial of a row, as the table of docs/tasks/plan.md has it."""
    best = row["trials"][0]
    words = [
        f"`{binding.partition('.')[2]}`"
        for binding in best["bindings"]
        if not (binding.startswith(("mesh.", "train.")) and binding.endswith("=1"))
        if not binding.endswith("=()")
    ]
    # Without the compiler's estimate it is a roofline.
    roofline = best["quick"] or CHIPS[row["chip"]].platform == "gpu"
    seconds = f"{'≥ ' * roofline}{1e3 * best['low_s']:,.0f}"
    mfu = f"{100 * best['mfu']:.0f}%"
    memory = f"{best['peak'] / 2**30:.1f}"
    return f"| {row['name']} | {', '.join(words)} | {seconds} | {mfu} | {memory} |"


def main() -> None:
    """Searches, and keeps the trials of every row as soon as they are there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows")
    parser.add_argument("--quick", action="store_true", help="generate no machine code")
    args = parser.parse_args()
    rows = json.loads(ROWS.read_text())
    unknown = set(args.names) - {row["name"] for row in rows}
    if unknown:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}")
    for row in rows:
        if row["name"] in args.names or not (args.names or "trials" in row):
            trials = search(row, args.quick)
            rows = json.loads(ROWS.read_text())
            next(r for r in rows if r["name"] == row["name"])["trials"] = trials
            ROWS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
