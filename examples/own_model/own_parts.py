"""A custom model, objective and optimizer, each as short as possible.

A config with `import own_parts` can use them. They need not be inside the fmjax
package: this folder can be anywhere.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from fmjax.configurable import configurable
from fmjax.objectives.objective import Objective
from fmjax.objectives.terms import LossOutput, Ratio, Term
from fmjax.optim.optimizers import Optimizer


@configurable("window_mlp")
class WindowMLP(nn.Module):
    """A window MLP: predicts the next token from the last few (Bengio et al. 2003).

    Attributes:
      vocab_size: V.
      max_length: tokens of the longest row.
      window: tokens that a prediction depends on.
      embed_dim: E, width of a token's vector.
      mlp_dim: D, width of the hidden layer.
    """

    vocab_size: int
    max_length: int
    window: int = 8
    embed_dim: int = 32
    mlp_dim: int = 128

    def setup(self):
        """Makes the parameters; the names of their axes define how they are sharded."""

        def weights(name, axes, *shape):
            init = nn.with_logical_partitioning(nn.initializers.normal(0.1), axes)
            return self.param(name, init, shape)

        size = self.window * self.embed_dim
        self.table = weights(
            "table", ("vocab", "embed"), self.vocab_size, self.embed_dim
        )
        self.up = weights("up", ("embed", "mlp"), size, self.mlp_dim)
        self.out = weights("out", ("mlp", "vocab"), self.mlp_dim, self.vocab_size)

    def __call__(self, tokens):
        """Logits [B, T, V] of the token after each of `tokens`, int32 [B, T]."""
        length = tokens.shape[1]
        # Positions before the row are filled with id 0.
        before = jnp.pad(tokens, ((0, 0), (self.window - 1, 0)))
        seen = [before[:, i : i + length] for i in range(self.window)]
        vectors = jnp.take(self.table, jnp.stack(seen, -1), axis=0)  # [B, T, window, E]
        hidden = jnp.tanh(vectors.reshape(*tokens.shape, -1) @ self.up)  # [B, T, D]
        return {"hidden": hidden, "logits": hidden @ self.out}


@configurable("focal_lm")
@dataclasses.dataclass(frozen=True)
class FocalLM(Objective):
    """Focal loss of the next token (Lin et al. 2017, arXiv:1708.02002, equation 4).

    The cross-entropy is multiplied by (1 - p)^gamma, where p is the probability of the
    target, so that well-predicted tokens have less weight.

    Attributes:
      model: gives logits of tokens.
      gamma: exponent; 0 gives the plain cross-entropy.
    """

    model: WindowMLP
    gamma: float = 1.0

    unit = "tokens"  # what throughput counts

    def init(self, rng):
        """Initial boxed variables."""
        return self.model.init(rng, jnp.zeros((1, 1), jnp.int32))

    def loss(self, variables, batch, rng):
        """Loss terms and metrics, whose sums add up over microbatches and hosts."""
        logits = self.model.apply(variables, batch["tokens"])["logits"]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        focal = (1 - jnp.exp(-nll)) ** self.gamma * nll
        counts, weight = (
            batch["weights"],
            batch["weights"].sum(),
        )  # weights are 0 for padding
        terms = {"focal": Term((focal * counts).sum(), weight)}
        return LossOutput(terms, {"nll": Ratio((nll * counts).sum(), weight)})

    def weights(self, batch):
        """The weight of each term, the divisor of its sum over the global batch."""
        return {"focal": batch["weights"].sum()}

    def check(self, rows, vocab_size):
        """Accepts all rows; raise a UserError here for rows the model cannot take."""

    def train_flops_per_row(self, params, rows):
        """Matrix FLOPs of a step per row: 6 per token and weight of a product."""
        products = sum(params[name].size for name in ("up", "out"))
        return 6 * products * rows["tokens"][0]


@configurable("signum")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Signum(Optimizer):
    """The sign of the momentum (Bernstein et al. 2018, arXiv:1802.04434).

    Attributes:
      b1: decay rate of the momentum.
    """

    b1: float = 0.9

    def direction(self, axes):
        """The transformations between clipping and the learning rate."""
        sign = optax.stateless(lambda updates, _: jax.tree.map(jnp.sign, updates))
        return [optax.ema(self.b1, debias=False), sign, self.decay(axes)]
