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
# # Scaling laws, from data to decision
#
# You have some chips for some days. How large a model do you train, on how many tokens? This
# notebook fits the law of Hoffmann et al. 2022 (Chinchilla) to their runs, looks at how well it
# fits, asks it for a size, adds a limit on data, and then asks what the uncertainty of the fit means
# for the choice.
#
# The points are the 245 runs that Besiroglu et al. 2024 read off Chinchilla's figure 4
# ([epoch-research/analyzing-chinchilla](https://github.com/epoch-research/analyzing-chinchilla)).
# Where the file is missing, points are drawn from the published law with noise instead, so that the notebook
# runs; its conclusions are then about these. It takes about a minute on two cores.

# %% tags=["parameters"]
points_file = "../../shared/data/scaling/chinchilla_runs.csv"
bootstrap = 1000  # resamples for intervals
chips, mfu, days = "v5e-256", 0.45, 7
unique_tokens = 100e9  # of the data at hand

# %%
# %matplotlib inline
import dataclasses
import pathlib
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from fmjax import scaling

# %% [markdown]
# ## The data
#
# Each run has a number of parameters N, a budget of C FLOPs and a final loss; its tokens are
# D = C / 6N. The law is
#
# $$L(N, D) = E + \frac{A}{N^\alpha} + \frac{B}{D^\beta}$$
#
# E is the entropy of the text itself, the other terms are what a finite model and finite data add. The
# five runs of the highest loss are left out, as in the refit.

# %%
if not pathlib.Path(points_file).exists():
    print(f"{points_file} is missing: points are drawn from the published law")
    random = np.random.default_rng(0)
    N = np.exp(random.uniform(np.log(5e7), np.log(1.6e10), 245))
    C = np.exp(random.uniform(np.log(1e19), np.log(3e21), 245))
    loss = scaling.find_law("besiroglu").law.loss(N, C / (6 * N)) * np.exp(random.normal(0, 0.01, 245))
    points_file = pathlib.Path(tempfile.mkdtemp()) / "points.csv"
    columns = {"Model Size": N, "Training FLOP": C, "loss": loss}
    pd.DataFrame(columns).to_csv(points_file, index=False)

columns = {"parameters": "Model Size", "flops": "Training FLOP"}
points = scaling.read_points(points_file, columns, without_highest=5)
figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
drawn = ax.scatter(points.flops, points.loss, c=points.parameters, s=16, cmap="viridis", norm="log")
figure.colorbar(drawn, label="parameters")
ax.set(xscale="log", xlabel="FLOPs", ylabel="loss (nats a token)")
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# The lower edge of the cloud is what a budget can reach; above it are runs whose model was too small or
# too large for their budget. The fit uses all of them, since the bad ones say how much a wrong size costs.
#
# ## The fit
#
# `fit_law` minimizes the Huber loss of log losses (which counts outliers less than squares do) by L-BFGS
# from a grid of starts, and repeats it for resampled points. The sum of Huber losses of the published
# refit is 0.00101827.

# %%
fit = scaling.fit_law("hoffmann", points, bootstrap=bootstrap)
published = scaling.find_law("besiroglu").law
intervals = pd.DataFrame(fit.intervals(), index=["2.5%", "97.5%"]).T
constants = pd.DataFrame({"fit": dataclasses.asdict(fit.law), "published refit": dataclasses.asdict(published)})
print(f"{len(points)} points, sum of Huber losses {fit.huber_sum:.8f}")
constants.insert(1, "2.5%", intervals["2.5%"])
constants.insert(2, "97.5%", intervals["97.5%"])
constants.style.format("{:,.4g}")

# %% [markdown]
# A and B have wide intervals, and that matters less than it seems: A and α move together (a larger
# A with a larger α gives nearly the same losses where the runs are), and so do B and β. What sizes depend on is the
# exponent of the best size, N ∝ C^a with a = β / (α + β), and the ratio D / N at a budget.

# %%
samples = pd.DataFrame([dataclasses.asdict(law) for law in fit.samples])
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
axes[0].scatter(samples.alpha, samples.A, s=5, alpha=0.4, label="α and A")
axes[0].scatter(samples.beta, samples.B, s=5, alpha=0.4, color="C1", label="β and B")
axes[0].set(yscale="log", xlabel="exponent", ylabel="coefficient")
axes[0].legend(frameon=False, markerscale=3)
a = samples.beta / (samples.alpha + samples.beta)
axes[1].hist(a, bins=40, color="C0", alpha=0.8)
for name, value, style in (("this fit", fit.law.beta / (fit.law.alpha + fit.law.beta), "-"), ("Hoffmann's text", 0.28 / 0.62, "--"), ("Kaplan", 0.73, ":")):
    axes[1].axvline(value, color="0.2", linestyle=style, label=f"{name}: {value:.2f}")
axes[1].set(xlabel="a, in best N ∝ C^a", ylabel="resamples")
axes[1].legend(frameon=False, fontsize=8)
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# The exponent is near one half: with ten times the compute, both the model and the data grow by about √10.
# Kaplan et al. 2020 found 0.73 (they left out embeddings and used one schedule for all lengths), and the rounded
# constants in Hoffmann et al.'s text do not fit their own points.
#
# ## Residuals
#
# A law is worth as much as its residuals. On the left, how far each run is from the law; on the right the best
# size of each budget, beyond the largest one that was tried (grey line).

# %%
scaling.plot_fit(fit, points)

# %%
residuals = pd.DataFrame({"flops": points.flops, "percent": 100 * (points.loss / fit.law.loss(points.parameters, points.tokens) - 1)})
residuals["FLOPs"] = pd.qcut(residuals.flops, 4, labels=["lowest quarter", "second", "third", "highest quarter"])
table = residuals.groupby("FLOPs", observed=True).percent.agg(["mean", "std", "count"])
table.style.format("{:+.2f}", ["mean"]).format("{:.2f}", ["std"]).set_caption("loss above the law (%)")

# %% [markdown]
# If the mean of the highest quarter were far from zero, an extrapolation to larger budgets would begin with
# that error. The standard deviation is what a single run scatters: a prediction of one run cannot be better.
# Two things in the picture do not show in the table: the largest models (yellow) are above the law where their
# budget was small, so the law is too kind to models that are much too large; and the one run of more than
# 10²² FLOPs is 2.4% below it. The intervals above say nothing about such errors of the form itself.
#
# ## A size for a budget
#
# Chips, hours and a utilization make FLOPs. The peaks are those of `fmjax plan`, which also predicts the utilization
# of a config.

# %%
hardware = scaling.chips(chips, mfu)
budget = hardware.flops(hours=24 * days)
size, _ = scaling.size(fit, flops=budget)


def row(model):
    return {"parameters (B)": model.parameters / 1e9, "tokens (B)": model.tokens / 1e9, "tokens a parameter": model.tokens / model.parameters, "loss": model.loss}


print(f"{days} days of {chips} at {mfu:.0%} MFU: {budget:.2e} FLOPs, {24 * days * hardware.count:,} chip-hours")
low, high = size.parameters_interval
print(f"95% interval of the best size: {low / 1e9:.1f} to {high / 1e9:.1f} billion parameters")
names = {"best": size.best, "smallest within 1%": size.smallest, "largest within 1%": size.largest}
pd.DataFrame({name: row(model) for name, model in names.items()}).T.style.format("{:,.2f}")

# %%
scaling.plot_size(fit, size, None, tolerance=0.01)

# %% [markdown]
# The curve is flat around the best: within 1% of the loss lie models that differ several times in size. The
# smallest of them costs as much to train and a fraction to use, which is why models that are served are
# trained on far more tokens than the best size says.
#
# ## Too few data
#
# The best model wants more tokens than you may have. Under the law of Muennighoff et al. 2023 a token that was seen
# before is worth less with every epoch: exp(−(epochs − 1) / 15.4) of a new one.

# %%
limited, repetition = scaling.size(fit, flops=budget, unique=unique_tokens)
print(f"the budget wants {repetition.wanted / 1e9:,.0f} billion tokens, there are {unique_tokens / 1e9:,.0f}: {repetition.verdict(0.01)}")
names = {"all tokens new": size.best, f"{unique_tokens / 1e9:,.0f}B, repeated": limited.best}
found = pd.DataFrame({name: row(model) for name, model in names.items()}).T
found["epochs"] = [1, limited.best.tokens / unique_tokens]
found.style.format("{:,.2f}")

# %%
pool = np.geomspace(unique_tokens / 20, unique_tokens * 20, 25)
losses, epochs = [], []
for unique in pool:
    of_pool, _ = scaling.size(fit, flops=budget, unique=unique)
    losses.append(of_pool.best.loss)
    epochs.append(max(1, of_pool.best.tokens / unique))
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
axes[0].plot(pool / 1e9, losses)
axes[0].axhline(size.best.loss, color="0.6", linestyle="--", label="all tokens new")
axes[0].set(ylabel="loss of the best model")
axes[0].legend(frameon=False)
axes[1].plot(pool / 1e9, epochs)
axes[1].set(ylabel="epochs of the best model", yscale="log")
for ax in axes:
    ax.axvline(unique_tokens / 1e9, color="C3", linewidth=0.9)
    ax.set(xscale="log", xlabel="unique tokens (billions)")
    ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Up to about four epochs repetition costs next to nothing. Where the curve on the left is steep, more data buy
# more than more compute. The law was fitted to runs with dropout that did not overfit; it does not predict a
# loss that rises again.
#
# ## What the uncertainty means for the decision
#
# The best size has an interval, but you choose one size. What counts is the *regret*: how much higher the
# loss of that size is than that of the best, if another resampled law is the true one. For each size below: the
# median of the regret over all resampled laws, and the 95th percentile.

# %%
def regret(laws, N, flops):
    """Share by which the loss of sizes [n] is above the best of a budget, [laws, n]."""
    return np.array([law.loss(N, flops / (6 * N)) / law.optimum(flops).loss - 1 for law in laws])


N = np.geomspace(size.smallest.parameters / 2, size.largest.parameters * 2, 200)
of_samples = 100 * regret(fit.samples, N, budget)
median, high = np.percentile(of_samples, [50, 95], axis=0)
figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(N, median, label="median")
ax.fill_between(N, median, high, alpha=0.25, label="up to the 95th percentile")
ax.axvline(size.best.parameters, color="0.4", linestyle="--", label="best of the fit")
ax.axvspan(*size.parameters_interval, color="0.92", zorder=0, label="95% interval of the best")
ax.set(xscale="log", xlabel="parameters", ylabel="regret (% of the loss)", ylim=(0, 3), xlim=(N[0] / 1.5, N[-1] * 1.5))
ax.xaxis.set_minor_formatter("")
ax.legend(frameon=True, framealpha=1, edgecolor="white", fontsize=9, loc="upper center")
ax.spines[["top", "right"]].set_visible(False)

# %%
candidates = {
    "best of the fit": size.best.parameters,
    "half of it": size.best.parameters / 2,
    "a third of it": size.best.parameters / 3,
    "lower end of its interval": size.parameters_interval[0],
    "upper end of its interval": size.parameters_interval[1],
    "Hoffmann's constants as stated": scaling.find_law("hoffmann").law.optimum(budget).parameters,
    "Kaplan's law": scaling.find_law("kaplan").law.optimum(budget).parameters,
}
rows = {}
for name, chosen in candidates.items():
    percent = 100 * regret(fit.samples, np.array([chosen]), budget)
    rows[name] = {
        "parameters (B)": chosen / 1e9,
        "tokens (B)": budget / 6 / chosen / 1e9,
        "regret, median (%)": np.median(percent),
        "regret, 95% (%)": np.percentile(percent, 95),
        "cost to serve": chosen / size.best.parameters,
    }
pd.DataFrame(rows).T.style.format("{:,.2f}")

# %% [markdown]
# - The interval of the best size is wide and costs little: the best of the fit loses less than a tenth of a percent
#   in 95% of the resamples, and either end of the interval a few tenths. Single runs scatter by half a percent or
#   more. More runs, to narrow the interval, would not change the decision.
# - Halving the model costs little loss and halves the cost of every token that is generated. If the model is
#   to be used much, that decides.
# - The choice between *laws* matters more than the uncertainty within one: Kaplan's exponent gives a model that is
#   several times too large. These laws are also about others' data and tokenizers. Before a large run, train a small
#   ladder of your own: `fmjax scaling run` predicts the largest of its runs before training it, and grades the prediction
#   ([Scaling laws](../docs/tasks/scaling.md)).
