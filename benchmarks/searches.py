"""The fastest mesh, remat policy and attention blocks of models on 256 chips.

    python benchmarks/searches.py [NAME ...]

Runs `fmjax plan --search` for rows of searches.json beside this file: those named, or
those without trials. The trials are kept there. A row takes an hour or more on two
cores. Nothing here is measured on a chip.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from predicted_steps import config_of

ROWS = pathlib.Path(__file__).with_suffix(".json")


def search(row: dict) -> list[dict]:
    """The trials of `fmjax plan --search`, the shortest step first.

    Args:
      row: as of `predicted_steps.plan`.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = pathlib.Path(folder) / "plan.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "fmjax", "plan", str(config_of(row, folder))),
                *row["bindings"],
                *("--chip", row["chip"], "--chips", str(row["chips"])),
                *("--search", "--json", str(found)),
            ],
            check=True,
        )
        return json.loads(found.read_text())["trials"]


def main() -> None:
    """Searches, and keeps the trials of every row as soon as they are there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows")
    args = parser.parse_args()
    rows = json.loads(ROWS.read_text())
    unknown = set(args.names) - {row["name"] for row in rows}
    if unknown:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}")
    for row in rows:
        if row["name"] in args.names or not (args.names or "trials" in row):
            trials = search(row)
            rows = json.loads(ROWS.read_text())
            next(r for r in rows if r["name"] == row["name"])["trials"] = trials
            ROWS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
