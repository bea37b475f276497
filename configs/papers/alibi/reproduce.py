"""Trains the four models of this folder on short texts and tests them on long ones.

    python configs/papers/alibi/reproduce.py ../shared/data/text/tinyshakespeare.txt

Runs that exist are continued, or read if they are finished. Writes results.json and
positions.png beside this file.
"""

import argparse
import json
import pathlib

import matplotlib.pyplot as plt

import fmjax

HERE = pathlib.Path(__file__).parent
MODELS = ("alibi", "learned", "rotary", "sinusoidal")
TRAINED = 64
LENGTHS = (64, 128, 256, 512, 1024)


def main() -> None:
    """Trains, evaluates, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", help="the file of Shakespeare's works")
    parser.add_argument("--runs", type=pathlib.Path, default="runs/alibi")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("bindings", nargs="*", help="NAME=VALUE of all four")
    args = parser.parse_intermixed_args()
    losses = {}
    for name in MODELS:
        bindings = [f"TEXT_FILE={args.text}", *args.bindings]
        experiment = fmjax.load_experiment(HERE / f"{name}.gin", bindings)
        fmjax.train(experiment, args.runs / name)
        losses[name] = [
            fmjax.evaluate(
                args.runs / name,
                bindings=[f"data.length={length}", "train.eval_batch_size=8"],
            )["loss"]
            for length in args.lengths
        ]
    result = {"length": list(args.lengths), "nats per character": losses}
    (args.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(args.lengths, losses, args.out / "positions.png")


def draw(lengths: list[int], losses: dict[str, list[float]], file) -> None:
    """Draws the loss of each model over the length of the text it reads."""
    figure, axes = plt.subplots(figsize=(5.5, 3.5), layout="constrained")
    for name, found in losses.items():
        axes.plot(lengths, found, marker="o", label=name)
    axes.axvline(TRAINED, color="grey", linestyle=":", label="trained on")
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, list(map(str, lengths)))
    axes.set(xlabel="characters read at once", ylabel="validation loss, nats")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
