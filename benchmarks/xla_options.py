"""What each of fmjax's XLA options for TPUs does to the predicted step.

    python benchmarks/xla_options.py [OPTION ...] [--chip v6e]

Plans Llama 3 8B (`configs/pods/llama3_8b.gin`) on 256 chips with every option of
`fmjax/sharding/xla_options.py`, and without each in turn, and keeps the figures in
xla_options.json beside this file: those of the options named, or those that are not
there yet. Each takes three to six minutes on two cores, as the options act on the
schedule, which a quick plan does not have. Predicted, not measured.
"""

import argparse
import json
import pathlib

from predicted_steps import FIGURES as PREDICTED
from predicted_steps import figures, plan

from fmjax.sharding.xla_options import SCOPED_VMEM, XLA_OPTIONS

FIGURES = pathlib.Path(__file__).with_suffix(".json")
STEPS = {
    "v5e": "Llama 3 8B, 4096 tokens, 256 v5e",
    "v6e": "Llama 3 8B, 8192 tokens, 256 v6e",
}
NONE_LEFT_OUT, OTHERS = "with all", "all but the first"


def options_of(chip: str) -> list[str]:
    """Names of the options that fmjax sets for a TPU."""
    options = XLA_OPTIONS["tpu"]
    found = [o.name for o in options if o.chips is None or chip in o.chips]
    assert found[0] == SCOPED_VMEM
    return found


def left_out(name: str, chip: str) -> tuple[str, ...]:
    """The options that a plan of this name leaves out."""
    if name == NONE_LEFT_OUT:
        return ()
    return tuple(options_of(chip)[1:]) if name == OTHERS else (name,)


def table_line(chip: str, name: str, found: dict, whole: dict) -> str:
    """A row of the table of docs/tasks/plan.md.

    Args:
      chip: its name.
      name: of what was left out.
      found: figures without it.
      whole: figures with all options.
    """
    seconds = [(f["low_s"] + f["high_s"]) / 2 for f in (found, whole)]
    low, high = (f"{1e3 * found[end]:,.0f}" for end in ("low_s", "high_s"))
    slower = f"{100 * (seconds[0] / seconds[1] - 1):+.1f}%"
    words = f"`{name}`" if name in options_of(chip) else name
    cells = (chip, words, f"{low}–{high}", slower, f"{found['temporaries_gib']:.1f}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Plans without each option, and keeps figures as soon as they are there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="OPTION")
    parser.add_argument("--chip", choices=STEPS, default="v5e")
    args = parser.parse_args()
    rows, step = json.loads(PREDICTED.read_text()), STEPS[args.chip]
    row = next(r for r in rows if r["name"] == step)
    names = [NONE_LEFT_OUT, *options_of(args.chip), OTHERS]
    unknown = set(args.names) - set(names)
    if unknown:
        parser.error(f"not set for {args.chip}: {', '.join(sorted(unknown))}")
    every = json.loads(FIGURES.read_text())
    found = every.setdefault(args.chip, {})
    for name in args.names or [name for name in names if name not in found]:
        without = tuple((option, None) for option in left_out(name, args.chip))
        bindings = [*row["bindings"], f"train.xla_options={without!r}"]
        found[name] = figures(plan(row | {"bindings": bindings}))
        print(f"{name}: {found[name]}", flush=True)
        FIGURES.write_text(json.dumps(every, indent=1) + "\n")


if __name__ == "__main__":
    main()
