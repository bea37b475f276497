"""Contrast of texts: SimCSE, and multiple negatives ranking."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError, require
from fmjax.models.contracts import GeneratesFromText
from fmjax.models.flops import attention_flops, matmul_parameters
from fmjax.models.layers.dense import Dense
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.l2_normalize import l2_normalize
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.parts import parts_of
from fmjax.models.text_embedding import TextEmbedding, check_embeds_texts, embed_texts
from fmjax.models.text_heads import init_variables
from fmjax.objectives.contrast import is_nearest, ranking_contrast
from fmjax.objectives.fit import check_names, check_tokens
from fmjax.objectives.objective import EmbeddingObjective, Embeddings
from fmjax.objectives.terms import Batch, LossOutput, Ratio, RowShapes, Term

_DROPOUT = ("dropout", "attention_dropout", "mlp_dropout", "stochastic_depth")


@configurable("text_contrast")
@dataclasses.dataclass(frozen=True)
class TextContrast(EmbeddingObjective):
    """Contrast of texts over the global batch: which text belongs to which.

    Rows of data.rows = 'texts' have one text, two, or more. With one, a text is read
    twice with different dropout and belongs to itself (unsupervised SimCSE, Gao et al.
    2021). Of two, inputs and targets belong together, and the targets of other rows are
    negatives (multiple negatives ranking, Henderson et al. 2017); more are hard
    negatives, of all rows (supervised SimCSE). Evaluation has no dropout, so a single
    text has a loss there, but tells nothing.

    Attributes:
      model: a language model; of an encoder-decoder the encoder is used.
      embedding: how a text's vector follows from its tokens, here and in `run.embed`.
        Its prompt and normalize are for `run.embed` alone.
      scale: multiplies similarities, the inverse temperature: 20 in SimCSE and in
        sentence-transformers.
      similarity: "cosine", or "dot" for inner products.
      symmetric: whether to average with the loss of each target among all inputs.
      projection: "tanh" for a dense layer with tanh over the vectors in training alone
        (SimCSE); "none" for no such layer.
      mask_duplicates: whether texts of a batch that are equal to a text or its match,
        and matches of equal texts, are left out of its negatives.
      chunks: number of chunks of the batch; logits with one chunk are in memory at a
        time.
    """

    model: nn.Module
    embedding: TextEmbedding = TextEmbedding()
    scale: float = 20.0
    similarity: Literal["cosine", "dot"] = "cosine"
    symmetric: bool = False
    projection: Literal["none", "tanh"] = "none"
    mask_duplicates: bool = True
    chunks: int = runtime_field(8)

    unit = "texts"

    def __post_init__(self):
        require(self, "scale", self.scale > 0, "more than 0")
        require(self, "chunks", self.chunks >= 1, "at least 1")
        check_embeds_texts(self.model, self.embedding.pooling)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the model."""
        return self.model.vocab_size

    def without_own_params(self) -> "TextContrast":
        """The objective without a projection, which training alone uses."""
        return dataclasses.replace(self, projection="none")

    def init(self, rng: Key[Array, ""]) -> dict:
        """Boxed variables of the model, and of the projection."""
        variables = init_variables(self.model, rng)
        if self.projection == "none":
            return variables
        one = jnp.ones((1, 1), jnp.int32)
        width = jax.eval_shape(
            lambda variables: embed_texts(
                self.model,
                nn.unbox(variables),
                TextInputs(one, segment_ids=one),
                self.embedding.pooling,
            ),
            variables,
        ).shape[-1]
        key = jax.random.fold_in(rng, 1)
        layer = self._projection_layer(width).init(key, jnp.zeros((1, width)))
        params = {**variables["params"], "projection": layer["params"]}
        return {**variables, "params": params}

    def check(self, rows: RowShapes, vocab_size: int | None) -> None:
        """Raises a UserError where the model cannot take such rows."""
        shape = rows.get("tokens", ())
        if len(shape) != 2:
            raise UserError(
                "experiment.objective = @text_contrast() needs rows of whole texts; "
                "expected data.rows = 'texts'."
            )
        check_names(self, ("tokens", "segment_ids", "weights"), (), rows)
        check_tokens(self.model, "tokens", shape[1:], vocab_size)
        stacks = parts_of(self.model, TransformerConfig).values()
        drops = any(getattr(c, name) for c in stacks for name in _DROPOUT)
        if shape[0] == 1 and stacks and not drops:
            raise UserError(
                "The rows of data have one text, whose two vectors differ by dropout "
                "alone, and the model has none; expected transformer.dropout above 0, "
                "such as 0.1, or data of pairs."
            )

    def train_flops_per_row(self, params, rows: RowShapes) -> float:
        """Matrix FLOPs of a training step per row, without those of the loss."""
        texts, length = rows["tokens"]
        if isinstance(self.model, GeneratesFromText):
            stack = self.model.encoder
            per_token = 6.0 * matmul_parameters(params["encoder_stack"], stack)
            per_token += attention_flops(stack, length, "full")
        else:
            per_token = self.model.train_flops_per_token(params, length, predicted=0.0)
        return max(texts, 2) * length * per_token

    def weights(self, batch: Batch) -> dict[str, Array]:
        """The weight of the term: the number of rows, by their weights."""
        return {"contrastive": _count(batch)}

    def embed(
        self, variables: dict, batch: Batch, rng: Key[Array, " B"] | None
    ) -> tuple[Embeddings, LossOutput]:
        """The vectors that are compared, "texts" [B, max(G, 2), D], and no terms.

        Args:
          variables: {"params": …}.
          batch: tokens and segment_ids int32 [B, G, T], 0 for padding; weights float32
            [B], 0 for rows of padding.
          rng: one key per row for dropout; None in evaluation.
        """
        arrays = [batch[name] for name in ("tokens", "segment_ids")]
        if arrays[0].shape[1] == 1 and rng is not None:
            arrays = [jnp.repeat(array, 2, axis=1) for array in arrays]
        rows, views, _ = arrays[0].shape
        tokens, segment_ids = (array.reshape(rows * views, -1) for array in arrays)
        text = TextInputs(tokens, segment_ids=segment_ids)
        vectors = embed_texts(
            self.model, variables, text, self.embedding.pooling, _split(rng, views)
        )
        # Not in evaluation, as in `run.embed`.
        if self.projection == "tanh" and rng is not None:
            layer = self._projection_layer(vectors.shape[-1])
            params = {"params": variables["params"]["projection"]}
            vectors = jnp.tanh(layer.apply(params, vectors))
        vectors = vectors.reshape(rows, views, -1)
        if views == 1:
            vectors = jnp.repeat(vectors, 2, axis=1)
        if self.similarity == "cosine":
            vectors = l2_normalize(vectors)
        return {"texts": vectors}, LossOutput({}, {})

    def loss_from_embeddings(
        self,
        variables: dict,
        embeddings: Embeddings,
        batch: Batch,
        rng: Key[Array, " B"] | None,
    ) -> LossOutput:
        """The loss of all rows, given their vectors.

        Returns:
          Term "contrastive"; in evaluation of pairs the metric "nearest", the share of
          inputs whose target is the nearest of all targets of the batch.
        """
        del variables
        vectors, counts = embeddings["texts"], batch["weights"] > 0
        known = None
        if self.mask_duplicates:
            known = text_hashes(batch["tokens"], batch["segment_ids"] > 0)
            if known.shape[1] == 1:
                known = jnp.repeat(known, 2, axis=1)
        losses = ranking_contrast(
            vectors[:, 0],
            vectors[:, 1:],
            self.scale,
            counts,
            self.chunks,
            known,
            self.symmetric,
        )
        rows, metrics = _count(batch), {}
        # Not in training: it takes half as many products as the loss.
        if rng is None and batch["tokens"].shape[1] > 1:
            found, _ = is_nearest(vectors[:, 0], vectors[:, 1], counts, self.chunks)
            metrics["nearest"] = Ratio(found.sum().astype(jnp.float32), rows)
        return LossOutput({"contrastive": Term(losses.sum(), rows)}, metrics)

    def _projection_layer(self, width: int) -> Dense:
        return Dense(width, ("embed", None), True, 0.02, jnp.dtype("float32"))


def text_hashes(
    tokens: Int[Array, "*rows T"], mask: Bool[Array, "*rows T"]
) -> UInt32[Array, "*rows 2"]:
    """Hashes of 64 bits of rows of tokens: equal for equal rows."""
    length = tokens.shape[-1]
    factors = np.random.default_rng(0).integers(1 << 32, size=(length, 2))
    factors = jnp.asarray((factors | 1).astype(np.uint32))
    ids = jnp.where(mask, tokens + 1, 0).astype(jnp.uint32)
    return (ids[..., None] * factors).sum(-2, dtype=jnp.uint32)


def _split(keys: Keys, views: int) -> Key[Array, " N"] | None:
    """A key for each text of each row, [B · views], row by row."""
    if keys is None:
        return None
    return jnp.stack([fold_keys(keys, view) for view in range(views)], 1).reshape(-1)


def _count(batch: Batch) -> Float[Array, ""]:
    return (batch["weights"] > 0).sum().astype(jnp.float32)
