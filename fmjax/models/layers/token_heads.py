"""Heads that classify tokens and texts, and that find both ends of an answer."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from fmjax.models.layers.activations import ACTIVATIONS
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys, dropout, fold_keys
from fmjax.models.layers.norms import Norm
from fmjax.models.layers.transformer_config import TransformerConfig


class TokenHeads(nn.Module):
    """Dense layers over the vector of every token.

    Attributes:
      config: of the transformer below.
      classes: labels of a token; None for no such head.
      spans: whether there are logits of the first and the last token of an answer
        (Devlin et al. 2019, section 4.2).
      transform: activation of a dense layer, with a norm behind it, that comes before
        both (ModernBERT); "none" for no such layer.
      transform_bias: whether that layer and that norm have biases.
    """

    config: TransformerConfig
    classes: int | None
    spans: bool
    transform: str = "none"
    transform_bias: bool = True

    @nn.compact
    def __call__(self, hidden: Float[Array, "B T D"], keys: Keys) -> dict[str, Array]:
        """The heads' logits, float32.

        Args:
          hidden: vectors of the tokens.
          keys: for dropout before the labels; None in evaluation.

        Returns:
          token_logits: [B, T, classes]; span_logits: [B, T, 2]; each where the model
          has that head.
        """
        c, found = self.config, {}
        if self.transform != "none":
            hidden = self._transformed(hidden)
        if self.classes is not None:
            at_head = fold_keys(keys, c.num_layers + 2)
            x = dropout(hidden, c.dropout, at_head)
            found["token_logits"] = self._dense(self.classes, "classes", True)(x)
        if self.spans:
            found["span_logits"] = self._dense(2, "spans", True)(hidden)
        return {name: x.astype(jnp.float32) for name, x in found.items()}

    def _transformed(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c, bias = self.config, self.transform_bias
        x = self._dense(c.embed_dim, "transform", bias)(hidden)
        x = ACTIVATIONS[self.transform](x)
        return Norm("layernorm", c.norm_epsilon, bias, name="norm")(x)

    def _dense(self, features: int, name: str, bias: bool) -> Dense:
        c = self.config
        axes = ("embed", None)
        return Dense(features, axes, bias, c.init_std, c.compute_dtype, name=name)


class TextClassifier(nn.Module):
    """A dense layer, tanh, and a dense layer over one vector of a text (BART, T5).

    Attributes:
      config: of the transformer below.
      classes: of the text.
    """

    config: TransformerConfig
    classes: int

    @nn.compact
    def __call__(
        self, vectors: Float[Array, "B D"], keys: Keys
    ) -> Float[Array, "B classes"]:
        """Logits, float32; `keys` for dropout, None in evaluation."""
        c = self.config
        x = vectors
        for i, (features, name) in enumerate(
            ((c.embed_dim, "dense"), (self.classes, "out"))
        ):
            axes = ("embed", None)
            x = dropout(x, c.dropout, fold_keys(keys, c.num_layers + 2 + i))
            x = Dense(features, axes, True, c.init_std, c.compute_dtype, name=name)(x)
            x = jnp.tanh(x) if name == "dense" else x
        return x.astype(jnp.float32)


def last_vectors(
    hidden: Float[Array, "B T D"], padding_mask: Bool[Array, "B T"] | None
) -> Float[Array, "B D"]:
    """The vector of each row's last token that is not padding, on either side."""
    if padding_mask is None:
        return hidden[:, -1]
    length = padding_mask.shape[1]
    last = length - 1 - jnp.argmax(padding_mask[:, ::-1], 1)
    return jnp.take_along_axis(hidden, last[:, None, None], 1)[:, 0]
