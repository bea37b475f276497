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
# # fmjax in one notebook
#
# Train a small language model on Python's standard library, plot its curves, generate text,
# and compare two learning rates. All results below are from runs in this notebook: a few minutes on
# two cores for the 200 steps of each run.

# %% tags=["parameters"]
steps = 200
data = ["python_stdlib.validation_fraction=0.01"]

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import fmjax

runs = Path(tempfile.mkdtemp(prefix="fmjax-"))


# %% [markdown]
# ## Train
#
# A gin file names a model, an objective, data, an optimizer and a mesh. `load_experiment` reads it
# once, with bindings that override it, into a frozen `Experiment`: a tree of dataclasses.

# %%
def experiment(learning_rate):
    return fmjax.load_experiment(
        "quickstart.gin",
        [
            "transformer.num_layers=2",
            "transformer.embed_dim=128",
            "transformer.num_heads=4",
            "transformer.mlp_dim=344",
            "gpt.vocab_size=4096",
            "sentencepiece.vocab_size=4096",
            "data.length=128",
            *data,
            "train.batch_size=16",
            f"train.steps={steps}",
            f"train.eval_every={max(1, steps // 5)}",
            "train.eval_batches=4",
            "sample.prompt=None",
            "train.checkpoint_every=0",
            f"train.log_every={max(1, steps // 50)}",
            f"cosine.warmup_steps={steps // 10}",
            f"cosine.learning_rate={learning_rate}",
        ],
    )


low = experiment(5e-4)
low.objective.model, low.optimizer

# %% [markdown]
# `train` runs it in a directory. If it is stopped and called again, it continues from its last checkpoint.
# The last lines give the validation loss in nats per token and in bits per byte, and the entropy
# of single tokens on the same split: a model below that has learned from context.

# %%
outcome = fmjax.train(low, runs / "low")
outcome.step, outcome.finished

# %%
{
    name: round(outcome.validation[name], 3)
    for name in ("nll", "unigram_nll", "bits_per_byte", "unigram_bits_per_byte")
}

# %% [markdown]
# ## Curves

# %%
fmjax.curves([runs / "low"])

# %% [markdown]
# ## Generate
#
# `load` reads a run directory as a model that can be called. Prompts of different lengths are
# processed in one batch.

# %%
run = fmjax.load(runs / "low")
for text in fmjax.generate(run, ["def ", "import ", "    return "], max_tokens=40, temperature=0.7, seed=0):
    print(text, end="\n\n")

# %%
tokens = [run.tokenizer.encode("for i in range(")]
logits = run(tokens=tokens)["logits"]  # float32 [B, T, V]
[run.tokenizer.decode([int(i)]) for i in logits[0, -1].argsort()[-5:][::-1]]

# %% [markdown]
# ## Compare two learning rates
#
# The same experiment at four times the learning rate. `runs` reads the runs in a folder as a frame of their
# results and of the bindings in which they differ; `curves` draws them.

# %%
fmjax.train(experiment(2e-3), runs / "high")
fmjax.runs(runs)

# %%
fmjax.curves([runs / "low", runs / "high"])
