# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Four objectives at equal FLOPs
#
# Causal language modelling, prefix language modelling, masked language modelling and span corruption are four ways to
# learn from the same text. Their losses cannot be compared: they are of other tokens, with more or less to read. What
# can be compared is what a model has *learned for something else* at the same cost. Here each objective gets the same
# FLOPs on IMDb's reviews, without labels, and then a linear classifier reads the sentiment from the frozen model.

# %% tags=["parameters"]
tfds = "../../shared/data/tfds"
folder = None  # of the runs; None: a temporary one
budget = 1.2e13  # FLOPs of each run
seeds, at_once = 2, 2
labelled = 4000  # reviews of the classifier, a half of them to test it
bindings = []  # of all runs

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow_datasets
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import fmjax

folder = Path(folder or tempfile.mkdtemp(prefix="fmjax-"))
tfds = Path(tfds).resolve()

# %% [markdown]
# ## The models
#
# All are 128 wide, read 96 tokens at a time and have a vocabulary of 2,048. Their shapes follow the objectives: a
# decoder of four layers, an encoder of four, and twice an encoder-decoder of three and three layers, which shares all
# of its settings but the corruption of the text. The encoder has positions and initial weights with which a small
# masked language model learns at all within minutes (`configs/runs/small_encoder.gin` says why).

# %%
same = [
    f"TFDS_DIR={tfds}",
    "tfds.train='train[:10%]+unsupervised[:10%]'",
    "tfds.validation='test[:1%]'",
    "sentencepiece.vocab_size=2048",
    "data.length=96",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "experiment.evaluations=(@unigram_baseline(),)",
    *bindings,
]
objectives = {
    "causal": ("small/gpt_imdb.gin", []),
    "prefix": ("small/t5_imdb.gin", ["data.corruption=@prefix_lm()"]),
    "masked": (
        "small/bert_imdb.gin",
        ["bert.max_length=96", "masked_lm.max_predictions=15", "transformer.num_layers=4", "train.batch_size=64"],
    ),
    "spans": ("small/t5_imdb.gin", []),
}


def bindings_of(name, steps):
    """NAME=VALUE of the runs of an objective."""
    return [*objectives[name][1], *same, f"train.steps={steps}"]


# %% [markdown]
# One step of each tells its FLOPs, by the formula that MFU uses. The budget divided by them is the number of steps.

# %%
models = {}
for name, (config, _) in objectives.items():
    experiment = fmjax.load_experiment(config, bindings_of(name, steps=1))
    fmjax.train(experiment, folder / f"{name}_untrained")
    models[name] = fmjax.load(folder / f"{name}_untrained")
costs = pd.DataFrame(
    {
        "parameters": {name: sum(x.size for x in jax.tree.leaves(run.params)) for name, run in models.items()},
        "FLOPs of a step": {name: run.metrics.flops.dropna().iloc[-1] for name, run in models.items()},
    }
)
costs["steps"] = (budget / costs["FLOPs of a step"]).round().astype(int).clip(lower=2)
costs

# %%
runs = {}
for name, (config, _) in objectives.items():
    steps = int(costs.steps[name])
    found = fmjax.sweep(
        config,
        {"train.log_every": [max(1, steps // 20)]},
        bindings=bindings_of(name, steps),
        seeds=seeds,
        at_once=at_once,
        folder=folder / name,
    )
    runs[name] = [place for row in found.rows for place in found.run_dirs(row)]

# %% [markdown]
# ## What the losses say, and what they do not
#
# Each loss is divided by that of a unigram model of the objective's own targets, which knows how often each token is
# a target and reads nothing. A curve says how much context gives to *this* objective; that one is lower than another
# does not make it better.

# %%
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, folders in runs.items():
    for i, place in enumerate(folders):
        metrics = fmjax.load(place).metrics
        unigram = metrics.unigram_nll.dropna().iloc[-1]
        curve = metrics[metrics.split == "train"]
        flops = curve.step * costs["FLOPs of a step"][name]
        color = f"C{list(runs).index(name)}"
        axes.plot(flops, curve.nll / unigram, color=color, label=None if i else name)
axes.set(xlabel="FLOPs", ylabel="loss / loss of unigrams")
axes.grid(color="0.9")
_ = axes.legend()

# %% [markdown]
# ## What was learned for something else
#
# Each review is cut after the tokens that a model reads, and becomes the mean of the last layer's vectors
# (`run.embed`; of an encoder-decoder the encoder's). Logistic regression then reads the label from the frozen vectors.
# Three references: the same models after one step, TF-IDF of the same beginnings of the reviews, and chance, 0.5.

# %%
reviews = tensorflow_datasets.load("imdb_reviews", split=f"test[:{labelled}]", data_dir=tfds, download=False)
reviews = [*reviews.as_numpy_iterator()]
# About as much of a review as 96 tokens are.
texts = [review["text"].decode()[:330] for review in reviews]
labels = np.array([review["label"] for review in reviews])
train_rows, test_rows = train_test_split(np.arange(len(texts)), test_size=0.5, random_state=0, stratify=labels)


def probe(features, model):
    """Accuracy on one half of the reviews of a classifier that is fitted to the other."""
    found = model.fit(features[train_rows], labels[train_rows])
    return found.score(features[test_rows], labels[test_rows])


def read(run):
    """Accuracy of the linear classifier over a run's vectors."""
    vectors = run.embed(texts, pooling="mean", truncate=True, batch_size=100)
    return probe(vectors, make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)))


words = TfidfVectorizer(sublinear_tf=True).fit([texts[i] for i in train_rows])
rows = {("TF-IDF", "", 0): probe(words.transform(texts), LogisticRegression(max_iter=2000))}
for name, run in models.items():
    rows[name, "one step", 0] = read(run)
for name, folders in runs.items():
    for i, place in enumerate(folders):
        rows[name, "trained", i] = read(fmjax.load(place))
accuracy = pd.Series(rows, name="accuracy").rename_axis(["objective", "model", "seed"])
accuracy.unstack("seed").round(3)

# %%
half = 1.96 * np.sqrt(0.25 / len(test_rows))
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for y, name in enumerate(objectives):
    found = accuracy[name]["trained"]
    axes.errorbar(found.mean(), -y, xerr=half, fmt="o", color=f"C{y}", capsize=4)
    axes.plot(found, np.full(len(found), -y), "|", color=f"C{y}")
    axes.plot(accuracy[name]["one step"], [-y], "o", color="0.6", mfc="none")
axes.axvline(accuracy["TF-IDF"].iloc[0], color="0.4", linestyle=":", label="TF-IDF")
axes.plot([], [], "o", color="0.6", mfc="none", label="after one step")
axes.set_yticks(-np.arange(len(objectives)), objectives)
axes.set(xlabel=f"accuracy on {len(test_rows):,} reviews, 95% interval of the sample")
axes.grid(color="0.9")
_ = axes.legend()

# %% [markdown]
# ## Verdict
#
# At 1.2e13 FLOPs, five minutes of one core for each run, two seeds, and intervals of ± 0.022:
#
# - The causal model's vectors are best, 0.612, four points above what they were after one step; the masked one's are
#   next, 0.581, and gain nothing that the interval would show (0.572 after one step).
# - Those of the two encoder-decoders, 0.541 for spans and 0.528 for the prefix, are *below* the ones after one step
#   (0.578 and 0.559), perhaps because an encoder first learns to serve its decoder, and at this budget nothing has
#   made up for it.
# - A bag of words of the same beginnings has 0.737. None of these models has read enough to replace counting.
#
# The order of the losses over unigrams (causal 0.69, spans 0.79, masked and prefix 0.85) is not the order of what was
# learned. T5's finding, that corrupted spans are better than a prefix (Raffel et al. 2020, table 4), is of fine-tuned
# models and a budget millions of times larger; here both differ by less than the interval.
