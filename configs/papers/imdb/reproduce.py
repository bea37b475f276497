"""IMDb from raw text to labels: pretraining, six ways of fine-tuning, one test.

    python configs/papers/imdb/reproduce.py ../shared/data/tfds

Runs that exist are continued, or read if they are finished. Writes results.json and
accuracy.png beside this file.
"""

import argparse
import concurrent.futures
import json
import pathlib
import signal
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

import fmjax

HERE = pathlib.Path(__file__).parent
_ADAPTED = (
    "experiment.peft=@peft()",
    "peft.trained=('classifier/**',)",
)
# A vocabulary is most of so small a model, so that its table is adapted too.
_LORA = (
    *_ADAPTED,
    "peft.methods=(@lora(), @table/lora())",
    "lora.paths=('**/attention/*', '**/mlp/*')",
    "lora.rank=2",
    "lora.alpha=8.0",
    "table/lora.paths=('tokens/table',)",
    "table/lora.rank=4",
    "table/lora.alpha=16.0",
    "cosine.learning_rate=5e-3",
)
_FULL = ("cosine.learning_rate=5e-4",)
# Of each way: which pretraining, and bindings.
METHODS = {
    "full": ("causal", _FULL),
    "LoRA": ("causal", _LORA),
    "QLoRA": ("causal", (*_LORA, "peft.coding=@nf4()")),
    "prompt": (
        "causal",
        (
            *_ADAPTED,
            "peft.methods=(@prompt(),)",
            "prompt.length=20",
            "data.length=108",  # and the prompt: as many as the model has positions for
            "cosine.learning_rate=1e-2",
        ),
    ),
    "head": ("causal", (*_ADAPTED, "cosine.learning_rate=1e-2")),
    "from scratch": (
        "causal",
        ("experiment.init_from=()", "cosine.learning_rate=1e-3"),
    ),
    "full, masked": ("masked", _FULL),
}
RECORDS = "imdb_reviews/plain_text/1.0.0/imdb_reviews-{}.tfrecord*"
SPLITS = ("train", "unsupervised", "test")


def main() -> None:
    """Trains, tests, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tfds", type=pathlib.Path, help="the data_dir of TFDS")
    parser.add_argument("--runs", type=pathlib.Path, default="runs/imdb")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at_once", type=int, default=1, help="runs at a time")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("bindings", nargs="*", help="NAME=VALUE of all runs")
    args = parser.parse_intermixed_args()
    tfds, runs = args.tfds.absolute(), args.runs.absolute()
    texts = {split: read(tfds, split) for split in SPLITS}

    names = ("causal", "masked")
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        bindings = [f"TFDS_DIR={tfds}", *args.bindings]
        done = [pool.submit(pretrain, name, runs / name, bindings) for name in names]
        for pretraining in done:
            pretraining.result()
    losses = {name: fmjax.evaluate(runs / name)["loss"] for name in names}
    records = str(tfds / RECORDS)
    sweeps = {
        method: fmjax.sweep(
            HERE / "masked_classes.gin" if base == "masked" else "finetune/imdb.gin",
            {"method": {method: own}},
            folder=runs / method.replace(",", "").replace(" ", "_"),
            bindings=[
                f"RUN={str(runs / base)!r}",
                f"RECORDS={records.format('train')!r}",
                "train.eval_every=250",
                "train.checkpoint_every=0",
                "train.steps=500",
                *args.bindings,
            ],
            seeds=args.seeds,
            at_once=args.at_once,
            metric="accuracy",
            direction="maximize",
        )
        for method, (base, own) in METHODS.items()
        if method in args.methods
    }
    # Each run once, after all choices are made on the reviews that are held out.
    test = f"labelled_records.validation_files={records.format('test')!r}"
    accuracies = {
        method: sweep.evaluate([test], [sweep.best]).accuracy.tolist()
        for method, sweep in sweeps.items()
    }
    result = {
        "reviews": {split: len(found[0]) for split, found in texts.items()},
        "also in test": {
            split: shared(texts[split][0], texts["test"][0]) for split in SPLITS[:2]
        },
        "pretraining, nats a target": losses,
        "tf-idf": bag_of_words(*texts["train"], *texts["test"]),
        "test accuracy by seed": accuracies,
    }
    (args.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(result, args.out / "accuracy.png")


def read(tfds: pathlib.Path, split: str) -> tuple[list[str], np.ndarray]:
    """The texts and labels of a split."""
    import tensorflow_datasets

    loaded = tensorflow_datasets.load(
        "imdb_reviews/plain_text", split=split, data_dir=tfds, download=False
    )
    rows = list(loaded.as_numpy_iterator())
    labels = np.array([row["label"] for row in rows])
    return [row["text"].decode() for row in rows], labels


def shared(texts: list[str], others: list[str]) -> int:
    """How many different texts two splits share."""
    return len({*texts} & {*others})


def pretrain(name: str, run_dir: pathlib.Path, bindings: list[str]) -> None:
    """Trains on a mesh of two devices, is told to stop, and goes on on one device."""
    command = [sys.executable, "-m", "fmjax", "train", str(HERE / f"{name}.gin")]
    command += [*bindings, "--run_dir", str(run_dir)]
    if not (run_dir / "metrics.jsonl").exists():
        process = subprocess.Popen([*command, "--devices", "2", "mesh.fsdp=2"])
        while process.poll() is None:
            if steps_of(run_dir) >= 100:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(1)
        process.wait()
    subprocess.run(command, check=True)


def steps_of(run_dir: pathlib.Path) -> int:
    """The last step that a run has recorded."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def bag_of_words(texts, labels, test_texts, test_labels) -> float:
    """The accuracy of logistic regression on TF-IDF of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = make_pipeline(words, LogisticRegression(C=10, max_iter=1000))
    return float(model.fit(texts, labels).score(test_texts, test_labels))


def interval(accuracies: list[float], reviews: int) -> tuple[float, float, float]:
    """Mean and 95% interval: Student's t over seeds; of one seed Wilson's score."""
    mean, count = float(np.mean(accuracies)), len(accuracies)
    if count > 1:
        width = stats.t.ppf(0.975, count - 1) * np.std(accuracies, ddof=1) / count**0.5
        return mean, mean - width, mean + width
    found = stats.binomtest(round(mean * reviews), reviews).proportion_ci(
        method="wilson"
    )
    return mean, found.low, found.high


def draw(result: dict, file: pathlib.Path) -> None:
    """Draws the accuracy of each method with its interval."""
    reviews, found = result["reviews"]["test"], result["test accuracy by seed"]
    rows = {name: interval(values, reviews) for name, values in found.items()}
    names = sorted(rows, key=lambda name: rows[name][0])
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    means, lows, highs = np.array([rows[name] for name in names]).T
    axes.errorbar(means, names, xerr=(means - lows, highs - means), fmt="o", capsize=3)
    axes.axvline(
        result["tf-idf"], color="grey", linestyle=":", label="TF-IDF, whole reviews"
    )
    axes.set(xlabel=f"accuracy on the {reviews:,} reviews of the test split")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
