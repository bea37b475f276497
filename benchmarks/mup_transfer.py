"""Whether the best learning rate of a narrow model is that of wider ones.

Trains configs/papers/mup_transfer/characters.gin at every width and rate with µP and
without, as ordinary runs in a folder, narrow ones first; runs that are finished are
read. Writes results.json after each run, and transfer.png beside it:

    python benchmarks/mup_transfer.py TEXT_FILE --runs runs/mup_transfer \
      --out configs/papers/mup_transfer
"""

import argparse
import itertools
import json
import pathlib
import statistics
import sys

HEAD_DIM = 32
CONFIG = "papers/mup_transfer/characters.gin"
RATES = [5e-4 * 2**i for i in range(7)]
STANDARD = ["experiment.parametrization=None"]


def main() -> int:
    """Trains what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="the text to model, by characters")
    parser.add_argument("--runs", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()

    losses: dict[str, dict[str, dict[str, list[float]]]] = {}
    how = {"mup": [], "standard": STANDARD}
    for width, seed, name, rate in itertools.product(
        args.widths, range(args.seeds), how, args.rates
    ):
        bindings = [
            f"TEXT_FILE={args.text}",
            f"transformer.embed_dim={width}",
            f"transformer.num_heads={width // HEAD_DIM}",
            f"cosine.learning_rate={rate}",
            f"train.seed={seed}",
            f"train.steps={args.steps}",
            *how[name],
        ]
        loss = loss_of(bindings, args.runs / f"{name}_{width}_{rate:g}_{seed}")
        at = losses.setdefault(name, {}).setdefault(str(width), {})
        at.setdefault(f"{rate:g}", []).append(loss)
        print(f"{name}, width {width}, rate {rate:g}, seed {seed}: {loss:.4f}")
        best = best_rates(losses)
        found = {"steps": args.steps, "best_rates": best, "losses": losses}
        (args.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(losses, args.out / "transfer.png")
    return 0


def loss_of(bindings: list[str], run_dir: pathlib.Path) -> float:
    """The validation loss of a run after its last step; infinite if it diverged."""
    import fmjax
    from fmjax.training.faults.bad_step_log import Diverged

    kept = run_dir / "loss.json"
    if kept.exists():
        return json.loads(kept.read_text())
    try:
        outcome = fmjax.train(fmjax.load_experiment(CONFIG, bindings), run_dir)
        loss = outcome.validation["loss"]
    except Diverged:
        loss = float("inf")
    kept.write_text(json.dumps(loss))
    return loss


def best_rates(losses: dict) -> dict[str, dict[str, float]]:
    """The rate of the lowest mean loss, by parametrization and width."""
    return {
        name: {
            width: float(min(of_rate, key=lambda r: statistics.mean(of_rate[r])))
            for width, of_rate in of_width.items()
        }
        for name, of_width in losses.items()
    }


def draw(losses: dict, path: pathlib.Path) -> None:
    """Draws the mean loss against the rate, a curve a width, the best one marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, 2, figsize=(9, 3.6), sharey=True, layout="constrained"
    )
    titles = {"standard": "standard parametrization", "mup": "µP, base width 64"}
    for (name, title), here in zip(titles.items(), axes):
        of_width = losses[name]
        for i, (width, of_rate) in enumerate(of_width.items()):
            color = plt.get_cmap("viridis")(0.9 * i / max(1, len(of_width) - 1))
            rates = [float(rate) for rate in of_rate]
            means = [statistics.mean(found) for found in of_rate.values()]
            here.plot(rates, means, "o-", ms=3, color=color, label=f"width {width}")
            best = min(range(len(means)), key=means.__getitem__)
            here.plot(rates[best], means[best], "*", ms=13, color=color)
        here.set_xscale("log", base=2)
        here.set_xlabel("learning rate")
        here.set_title(title)
        here.grid(color="0.9")
    lowest = min(
        statistics.mean(x)
        for w in losses.values()
        for r in w.values()
        for x in r.values()
    )
    axes[0].set_ylim(lowest - 0.05, lowest + 1.2)
    axes[0].set_ylabel("validation loss, nats a character")
    axes[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
