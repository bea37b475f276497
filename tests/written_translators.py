"""Run directories of encoder-decoders with random parameters."""

import jax
import numpy as np
from flax import linen as nn

from fmjax.config.render import render
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.run import directory as run_dirs
from fmjax.training.checkpoint import checkpoints
from fmjax.training.experiment import Experiment

STACK = TransformerConfig(1, 8, 2)


def write_translator(
    path, seed, data=None, labels=(), objective=None, length=24
) -> str:
    """A run that reads and writes bytes; its directory.

    Args:
      path: its directory.
      seed: of its parameters.
      data: that its config says.
      labels: that its config says.
      objective: another one than @seq2seq_lm().
      length: the most bytes that it reads or writes, with EOS.
    """
    model = Seq2Seq(STACK, STACK, 259, length, positions="learned")
    objective = objective or Seq2SeqLM(model)
    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    draw = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda s: draw.normal(size=s.shape).astype(np.float32), shapes["params"]
    )
    run_dirs.write(path, render(Experiment(objective, data, labels=labels)))
    ByteTokenizer().save(path / run_dirs.TOKENIZER)
    checkpoints.save_model(path, params)
    return str(path)
