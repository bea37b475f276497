"""Predicted step time and memory of the configs in configs/pods and configs/models.

    python benchmarks/predicted_steps.py [NAME ...] [--write]

Compiles the train step of each with `fmjax plan` (extra plan-tpu; some minutes each on
two cores; rows marked as quick with `--quick`, in seconds) and compares it with the
last committed figures, predicted_steps.json beside this file. `--write` replaces these.
Nothing here is measured on a chip.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

FIGURES = pathlib.Path(__file__).with_suffix(".json")
PODS = pathlib.Path(__file__).parents[1] / "configs" / "pods"
TRANSLATION = ("m2m_100", "marian", "transformer")
IMAGES = ("beit", "dinov", "mae", "vit")
CAPTIONS = ("clip", "coca", "siglip")
GIB = 2**30
# A step that is predicted to take this much longer, or to need this much more memory,
# than the committed figures say, is a regression.
REGRESSION = 1.03


def plan(row: dict) -> dict:
    """The plan of a row of the table, as `fmjax plan --json` gives it.

    Args:
      row: with "config", a file of configs/pods, or "model", the name of a file of
        configs/models; with "chip", "chips" and "bindings"; and perhaps with "quick".
    """
    with tempfile.TemporaryDirectory() as folder:
        found = pathlib.Path(folder) / "plan.json"
        subprocess.run(
            [
                *(sys.executable, "-m", "fmjax", "plan", str(config_of(row, folder))),
                *row["bindings"],
                *("--chip", row["chip"], "--chips", str(row["chips"])),
                *("--json", str(found)),
                *["--quick"] * row.get("quick", False),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return json.loads(found.read_text())


def config_of(row: dict, folder: str) -> pathlib.Path:
    """A row's config; for a model, on data of the form that it reads, in `folder`."""
    if "config" in row:
        return PODS / row["config"]
    model = row["model"]
    data = "python_stdlib"
    if model.startswith(TRANSLATION):
        data = "multi30k"
    elif model.startswith(IMAGES):
        data = "digits"
    elif model.startswith(CAPTIONS):
        data = "digits_captions"
    files = ("quickstart.gin", f"data/{data}.gin", f"models/{model}.gin")
    lines = [f"include '{file}'" for file in files]
    if data == "multi30k":
        # Bytes need no files to make a tokenizer of.
        lines += ["PAIRS_DIR = 'pairs'", "text_task.tokenizer = @bytes()"]
    lines += ["ENCODER = 'encoder'"] * model.endswith("_from_encoder")
    config = pathlib.Path(folder) / "run.gin"
    config.write_text("\n".join(lines) + "\n")
    return config


def figures(found: dict) -> dict:
    """What the table keeps of a plan: seconds, shares and GiB."""
    time, predicted = found["step_time"], found["predicted"]
    return {
        "low_s": round(time["low_s"], 4),
        "high_s": round(time["high_s"], 4),
        "mfu_low": round(predicted["high"]["mfu"], 4),
        "mfu_high": round(predicted["low"]["mfu"], 4),
        "temporaries_gib": round(found["memory"]["temporaries"] / GIB, 2),
        "peak_gib": round(found["memory"]["peak"] / GIB, 2),
    }


def regressions(old: dict, new: dict) -> list[str]:
    """Figures of a row that are worse than the committed ones by 3% or more."""
    return [
        f"{name}: {old[name]} → {new[name]}"
        for name in ("low_s", "high_s", "peak_gib")
        if new[name] > REGRESSION * old[name]
    ]


def main() -> int:
    """Compiles, compares and prints; 1 if a figure got worse."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows; all by default")
    parser.add_argument("--write", action="store_true", help="keep the new figures")
    args = parser.parse_args()
    rows = json.loads(FIGURES.read_text())
    unknown = set(args.names) - {row["name"] for row in rows}
    if unknown:
        parser.error(f"no such rows: {', '.join(sorted(unknown))}")
    worse = False
    for row in rows:
        if args.names and row["name"] not in args.names:
            continue
        new, old = figures(plan(row)), row.get("predicted")
        found = regressions(old, new) if old else []
        worse |= bool(found)
        print(
            f"{row['name']}: {1e3 * new['low_s']:,.0f}–{1e3 * new['high_s']:,.0f} ms, "
            f"MFU {new['mfu_low']:.1%}–{new['mfu_high']:.1%}, "
            f"peak {new['peak_gib']} GiB"
            + "".join(f"; WORSE {line}" for line in found),
            flush=True,
        )
        if args.write:
            # Another process may have written other rows meanwhile.
            rows = json.loads(FIGURES.read_text())
            next(r for r in rows if r["name"] == row["name"])["predicted"] = new
            FIGURES.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return int(worse and not args.write)


if __name__ == "__main__":
    sys.exit(main())
