"""Why Kaplan et al. and Hoffmann et al. found different exponents for the best size.

    python configs/papers/kaplan_hoffmann/reproduce.py

Draws training curves of models of Kaplan's sizes from the law that is fitted to
Chinchilla's runs (../chinchilla_refit/law.json), and finds the best size of each budget
by the envelope of the curves, with parameters counted with and without embeddings. Does
the same fit to the runs of ../../ladders/imdb/points.csv. Writes results.json and
exponents.png beside this file.
"""

import argparse
import csv
import json
import pathlib

import matplotlib.pyplot as plt
import numpy as np

from fmjax import scaling
from fmjax.scaling.points import Points

HERE = pathlib.Path(__file__).parent
REFIT = HERE.parent / "chinchilla_refit" / "law.json"
LADDER = HERE.parents[1] / "ladders" / "imdb" / "points.csv"
# Kaplan et al. 2020: sizes without embeddings of section 3, vocabulary and context of
# section 2. Width over depth is GPT-2 small's.
SIZES = np.geomspace(768, 1.5e9, 25)
ROWS = 50_257 + 1_024
ASPECT = 64
TOKENS = np.geomspace(1e6, 1e12, 200)
LADDER_VOCABULARY = 4096
RANGES = {"Kaplan's sizes": (768, 1.5e9), "above 1e9": (1e9, 1e12)}


def main() -> None:
    """Fits, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--bootstrap", type=int, default=1000)
    args = parser.parse_args()
    law = scaling.find_law(str(REFIT)).law
    simulated = {}
    for name, (low, high) in RANGES.items():
        sizes = np.geomspace(low, high, len(SIZES))
        simulated[name] = {
            count: scaling.fit_envelope(curves(law, sizes, counted)).law.a
            for count, counted in (("without embeddings", sizes), ("all", total(sizes)))
        }
    result = {
        "exponent of the best size over FLOPs": {
            "Chinchilla's law, by envelopes": simulated,
            "Chinchilla's law itself": law.beta / (law.alpha + law.beta),
            "the ladder on IMDb": ladder(args.bootstrap),
        }
    }
    (args.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    draw(law, args.out / "exponents.png")


def total(without: np.ndarray) -> np.ndarray:
    """Parameters with embeddings, of decoders of 12 layers · width² without them."""
    width = (ASPECT * without / 12) ** (1 / 3)
    return without + ROWS * width


def curves(law, sizes: np.ndarray, counted: np.ndarray) -> Points:
    """Losses of models along their training, whose parameters are counted in a way."""
    every = np.repeat(total(sizes), len(TOKENS))
    tokens = np.tile(TOKENS, len(sizes))
    return Points(
        parameters=np.repeat(counted, len(TOKENS)),
        tokens=tokens,
        loss=law.loss(every, tokens),
        run=np.repeat(np.arange(len(sizes)), len(TOKENS)),
    )


def ladder(bootstrap: int) -> dict[str, dict]:
    """Exponents of Hoffmann's law, fitted to measured runs under both counts."""
    with LADDER.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ("parameters", "tokens", "loss")
    every, tokens, loss = ([float(row[name]) for row in rows] for name in columns)
    every, tokens, loss = np.array(every), np.array(tokens), np.array(loss)
    names = (row["run"].split("-")[0] for row in rows)
    widths = np.array([float(name.removeprefix("w")) for name in names])
    counts = {"without embeddings": every - LADDER_VOCABULARY * widths, "all": every}
    found = {}
    for name, parameters in counts.items():
        fit = scaling.fit_law("hoffmann", Points(parameters, tokens, loss), bootstrap)
        found[name] = exponent(fit.law)
        samples = sorted(exponent(sample) for sample in fit.samples)
        low, high = np.percentile(samples, [2.5, 97.5]) if samples else (None, None)
        found[name] = {"exponent": exponent(fit.law), "interval_95": [low, high]}
    return found


def exponent(law) -> float:
    """Of N over C, for L = E + A / N^α + B / D^β."""
    return law.beta / (law.alpha + law.beta)


def draw(law, file: pathlib.Path) -> None:
    """Draws the slope of the best size at each size, under both counts."""
    sizes = np.geomspace(768, 1e12, 400)
    every = total(sizes)
    slope_of_total = np.gradient(np.log(every), np.log(sizes))
    # At a fixed product with D the loss is lowest where both terms have one slope.
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for label, change in (("without embeddings", slope_of_total), ("all", 1.0)):
        parameters_term = law.alpha * law.A * every**-law.alpha * change
        tokens = (parameters_term / (law.beta * law.B)) ** (-1 / law.beta)
        counted = every if label == "all" else sizes
        local = np.gradient(np.log(counted), np.log(counted * tokens))
        axes.plot(sizes, local, label=f"parameters counted: {label}")
    axes.axvspan(*RANGES["Kaplan's sizes"], color="0.93", label="Kaplan's sizes")
    for value, whose, side in ((0.73, "Kaplan", "bottom"), (0.50, "Hoffmann", "top")):
        axes.axhline(value, color="0.4", linestyle=":")
        text = f"{whose} et al. {value:.2f}"
        axes.text(1e12, value, text, ha="right", va=side, fontsize=9)
    axes.set(
        xscale="log",
        xlabel="parameters without embeddings",
        ylabel="a in N* ∝ C^a, locally",
        ylim=(0.3, 1.05),
    )
    axes.legend(fontsize=9, loc="lower left")
    axes.grid(color="0.9")
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
