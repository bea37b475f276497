"""A loaded run: a model that can be called, with its parameters and tokenizer."""

import contextlib
import dataclasses
import functools
import html
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import jax
import numpy as np
import PIL.Image
from flax import linen as nn
from jax.sharding import NamedSharding
from jaxtyping import Array, ArrayLike, Float

from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError, explained_out_of_memory
from fmjax.inference import adapters
from fmjax.inference.attention_weights import by_stack
from fmjax.inference.classify import (
    Classified,
    as_labelled,
    check_classifies_texts,
    class_logits,
)
from fmjax.inference.classify_words import (
    TextOrWords,
    Word,
    check_classifies_words,
    labelled,
    token_logits,
    word_rows,
)
from fmjax.inference.inputs import inputs_of, rows_apart
from fmjax.inference.label_texts import label_prompts, label_tokens
from fmjax.inference.special_tokens import as_read
from fmjax.inference.text_rows import TextOrPair, TextRow, of_rows, text_rows
from fmjax.models.call_arguments import array_names, call_arguments
from fmjax.models.label_likelihoods import label_likelihoods
from fmjax.models.layers.attention import ATTENTION_WEIGHTS
from fmjax.models.layers.coded_weights import parameter_count
from fmjax.models.layers.l2_normalize import l2_normalize
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.text_embedding import (
    Pooling,
    TextEmbedding,
    check_embeds_texts,
    embed_texts,
)
from fmjax.objectives.text_classification import TextClassification
from fmjax.sharding.mesh import batch_shards, on_mesh
from fmjax.sharding.rules import LogicalRules
from fmjax.training.experiment import Experiment
from fmjax.training.labels import writes_labels
from fmjax.training.reporting import metrics

if TYPE_CHECKING:
    import pandas

# Functions of a model, compiled for each structure of its parameters.
_COMPILED = (
    "_apply",
    "_apply_for_weights",
    "_class_logits",
    "_embed_texts",
    "_label_likelihoods",
    "_token_logits",
)
LESS_MEMORY = (
    "What helps: fewer or shorter inputs at a time, parameters of dtype bfloat16, or "
    "the mesh of more devices, where fsdp divides the parameters among them."
)


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A trained or imported model with its parameters, tokenizer and config.

    It computes on the mesh of its parameters.

    Attributes:
      config: the experiment of the run.
      model: the module, without parameters.
      params: its parameters.
      tokenizer: its tokenizer; None if the run has none.
      step: number of updates; 0 for an imported model.
      extra: other collections of the model, by name.
      rules: rules from logical to mesh axes; those of `config` if None.
      directory: its run directory; None for a model that is not of one.
    """

    config: Experiment
    model: nn.Module
    params: dict
    tokenizer: Tokenizer | None
    step: int
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rules: LogicalRules | None = None
    directory: pathlib.Path | None = None

    def __repr__(self):
        """A summary in one line, without the parameters."""
        count = parameter_count(self.params)
        return (
            f"Run({self.config.objective.gin_name} of {self.model.gin_name}, "
            f"{count:,} parameters, step {self.step:,})"
        )

    @explained_out_of_memory(LESS_MEMORY)
    def __call__(
        self, *, hidden_states: bool = False, **inputs: ArrayLike
    ) -> dict[str, Array]:
        """Calls the model; outputs have the same names in every model family.

        Args:
          hidden_states: whether to return the hidden states of all layers.
          **inputs: arguments of the model's call.
            Text, all [B, T]: `tokens`, ids below vocab_size; optional `padding_mask`
            (False for padding), `segment_ids` (tokens attend only to their segment),
            `positions` and `token_types`.
            Images: `images` [B, height, width, C], normalized; for patches `masked` or
            `visible`, see the model.
            Encoder-decoder: `encoder_tokens` [B, S], `decoder_tokens` [B, T]; optional
            `encoder_padding_mask`, and segment ids and positions of both.

        Returns:
          logits: float32 [B, T, V] without vocabulary padding; [B, T] for ELECTRA, [B,
          classes] for images, [images, texts] for images and texts. hidden: [B, T, D],
          after the final norm. hidden_states, if asked for: [layers + 1, B, T, D].
          Other outputs of the model, such as pooled [B, D] and encoder_hidden [B, S,
          D].

        Raises:
          UserError: an argument is unknown, a shape is wrong, an id is out of range, or
            the devices have too little memory.
        """
        read = inputs_of(self.model, inputs)
        padded = {name: self._padded(array) for name, array in read.items()}
        with self.on_mesh():
            variables = {"params": self.params, **self.extra}
            out = self._apply(variables, padded, hidden_states)
        rows = {name: len(array) for name, array in read.items()}
        return {name: self._of_rows(name, x, rows) for name, x in out.items()}

    @explained_out_of_memory(LESS_MEMORY)
    def attention_weights(self, **inputs: ArrayLike) -> dict[str, np.ndarray]:
        """The attention weights of all layers and heads.

        They are computed beside the kernel of the model, in memory O(T · S).

        Args:
          **inputs: as for a call.

        Returns:
          Path of the parameters without the layer, such as "stack/attention", and of an
          encoder-decoder "encoder_stack/attention", "decoder_stack/attention" and
          "decoder_stack/cross_attention" → float32 [layers, B, H, T, S], each row of S
          keys with a sum of 1.

        Raises:
          UserError: as of a call.
        """
        read = inputs_of(self.model, inputs)
        padded = {name: self._padded(array) for name, array in read.items()}
        with self.on_mesh():
            variables = {"params": self.params, **self.extra}
            found = jax.device_get(self._apply_for_weights(variables, padded))
        texts_apart = rows_apart(self.model)
        weights = {}
        for path, array in by_stack(found).items():
            count = len(next(iter(read.values())))
            if texts_apart:
                count = len(read["images" if path.startswith("image") else "tokens"])
            weights[path] = array[:, :count]
        return weights

    @explained_out_of_memory(LESS_MEMORY)
    def embed(
        self,
        texts: Sequence[str],
        pooling: Pooling | None = None,
        *,
        normalize: bool | None = None,
        prompt: str | None = None,
        truncate: bool = False,
        batch_size: int = 32,
    ) -> Float[np.ndarray, "N D"]:
        """Vectors of texts: the last layer's hidden states, pooled over the tokens.

        Of an encoder-decoder they are the encoder's. Each text is read by itself, with
        the special tokens of training or of an imported tokenizer, which count as
        tokens. What is None is that of the run: of experiment.embedding, which imports
        of sentence-transformers have, or of @text_contrast(); else the mean of the
        tokens, without normalization or prompt.

        Args:
          texts: what to read.
          pooling: one of those of `TextEmbedding`, such as "mean".
          normalize: whether vectors are divided by their length.
          prompt: put before every text.
          truncate: whether to cut texts that are longer than the model's max_length, or
            that of the run's embedding; a line says how many are.
          batch_size: number of texts at a time.

        Raises:
          UserError: the model does not read texts alone, the run has no tokenizer, a
            text is empty or too long, or there is too little memory.
        """
        own = self.config.own_embedding
        how = own or TextEmbedding()
        pooling = how.pooling if pooling is None else pooling
        if pooling not in (known := get_args(Pooling)):
            raise UserError(f"pooling = {pooling!r}: expected one of {known}.")
        _check_batch_size(batch_size)
        check_embeds_texts(self.model, pooling)
        imported = self.config.data is None

        def wrap(ids):
            if len(ids) != 1:
                raise UserError("texts has a pair of texts; expected single ones.")
            if own is not None:
                return as_labelled(self.tokenizer, ids)
            return as_read(self.model, self.tokenizer, *ids, imported=imported)

        if before := how.prompt if prompt is None else prompt:
            texts = _with_prompt(texts, before)
        rows = text_rows(
            self.model, self.tokenizer, texts, wrap, truncate, how.max_length
        )
        compute = functools.partial(self._embed_texts, pooling=pooling)
        vectors = np.stack(self._of_texts(compute, rows, batch_size))
        is_unit = how.normalize if normalize is None else normalize
        return np.asarray(l2_normalize(vectors)) if is_unit else vectors

    @explained_out_of_memory(LESS_MEMORY)
    def classify(
        self,
        texts: Sequence[TextOrPair],
        *,
        truncate: bool = False,
        batch_size: int = 32,
    ) -> Classified:
        """Classifies texts, or pairs of texts, with the model's head for texts.

        Encoders read their pooled vector, decoders and encoder-decoders the vector of
        the last token. Special tokens are those of labelled texts in training, or of an
        imported tokenizer.

        An encoder-decoder that was trained on labels as text, see
        `record_pairs.labels`, reads each text in the template of training, and the
        logits are the log-likelihoods of the labels, log p(label | text) with EOS.

        Args:
          texts: the texts, or pairs of them; for labels as text, of the fields of
            `record_pairs.inputs` in their order there.
          truncate: whether to cut what is longer than the model's max_length, of a pair
            the second text; a line says how many are.
          batch_size: number of texts at a time.

        Raises:
          UserError: the model has no head for texts, the run no tokenizer, a text is
            empty or too long, or there is too little memory.
        """
        _check_batch_size(batch_size)
        if writes_labels(self.config):
            return self._classify_by_likelihood(texts, truncate, batch_size)
        check_classifies_texts(self.model)

        def wrap(ids):
            return as_labelled(self.tokenizer, ids)

        rows = text_rows(self.model, self.tokenizer, texts, wrap, truncate)
        logits = np.stack(self._of_texts(self._class_logits, rows, batch_size))
        labels = self._labels(self.model.num_classes)
        return Classified(logits, labels, self._has_several_labels())

    def _classify_by_likelihood(
        self, texts: Sequence[TextOrPair], truncate: bool, batch_size: int
    ) -> Classified:
        prompts = label_prompts(self.config.data, texts)

        def wrap(ids):
            return as_read(self.model, self.tokenizer, *ids, imported=False)

        rows = text_rows(self.model, self.tokenizer, prompts, wrap, truncate)
        labels = label_tokens(self.config, self.tokenizer)

        def compute(variables, text):
            return self._label_likelihoods(variables, text, *labels).log_likelihoods

        found = np.stack(self._of_texts(compute, rows, batch_size))
        return Classified(found, self.config.labels)

    def _has_several_labels(self) -> bool:
        objective, imported = self.config.objective, self.config.imported
        if isinstance(objective, TextClassification):
            return objective.output == "sigmoid"
        several = "multi_label_classification"
        return imported is not None and imported.problem_type == several

    @explained_out_of_memory(LESS_MEMORY)
    def classify_words(
        self,
        texts: Sequence[TextOrWords],
        *,
        truncate: bool = False,
        batch_size: int = 32,
    ) -> list[list[Word]]:
        """Classifies the words of texts with the model's head for tokens.

        The first token of a word tells its class, as with @labelled_words() in
        training.

        Args:
          texts: texts, which are cut at white space, or the words of texts.
          truncate: whether to leave out words beyond the model's max_length; a line
            says of how many texts.
          batch_size: number of texts at a time.

        Returns:
          The words of each text, but those of which the tokenizer leaves nothing.

        Raises:
          UserError: the model has no head for tokens, the run no tokenizer, a text is
            empty or too long, or there is too little memory.
        """
        _check_batch_size(batch_size)
        check_classifies_words(self.model)
        found = word_rows(self.model, self.tokenizer, texts, truncate)
        rows = [each.row for each in found]
        every = self._of_texts(self._token_logits, rows, batch_size)
        labels = self._labels(self.model.token_classes)
        return [labelled(each.words, x, labels) for each, x in zip(found, every)]

    def preprocess(
        self, images: Iterable[PIL.Image.Image]
    ) -> Float[np.ndarray, "B S S 3"]:
        """Resizes, crops and normalizes pictures for the model.

        Raises:
          UserError: the run has no preprocessing of images.
        """
        preprocessing = self.config.image_preprocessing
        if preprocessing is None:
            raise UserError(
                "experiment.preprocessing = None and experiment.data has no images; "
                "expected @preprocessing(), which `fmjax import` writes for a folder "
                "with preprocessor_config.json."
            )
        return np.stack([preprocessing.of_picture(image) for image in images])

    def merged(self, dtype: str | None = None) -> "Run":
        """The run with its adapters merged into the weights.

        `fmjax merge` writes such a run. A run without adapters is returned unchanged.

        Args:
          dtype: of the weights; None to keep their dtypes.

        Raises:
          UserError: the adapters cannot be merged into weights.
        """
        if self.config.peft is None:
            return self
        return self._replaced(adapters.merged(self, self._where, dtype))

    def with_adapter(
        self,
        other: "Run | str | os.PathLike",
        step: int | None = None,
        trust: bool = False,
    ) -> "Run":
        """The run with the adapters of another run of the same base, and its tokenizer.

        Frozen parameters are not read or copied: both runs share their arrays, in the
        dtype that they have here. Models of the same sizes share compiled programs. Of
        a loaded run on the same mesh, adapters are not read again either.

        Args:
          other: a run of adapters, or its directory.
          step: of its checkpoint; None for the newest.
          trust: whether its config may import Python modules.

        Raises:
          UserError: `other` has no adapters, or adapters of another base.
        """
        if isinstance(other, Run):
            if other.directory is None:
                raise UserError("the other run has no directory to read adapters from.")
            if other._where == self._where:
                return self._replaced(adapters.with_loaded_adapter(self, other))
            other, step = other.directory, other.step
        return self._replaced(
            adapters.with_adapter(self, self._where, other, step, trust)
        )

    def without_adapters(self, trust: bool = False) -> "Run":
        """The run that the adapters were trained on; shares frozen parameters.

        A run without adapters is returned unchanged.

        Args:
          trust: whether the config of that run may import Python modules.

        Raises:
          UserError: that run is missing, or no longer what it was.
        """
        if self.config.peft is None:
            return self
        return self._replaced(adapters.without_adapters(self, self._where, trust))

    def _repr_html_(self) -> str:
        """A table of what it is, for notebooks."""
        rows = {
            "objective": self.config.objective.gin_name,
            "model": self.model.gin_name,
            "parameters": f"{parameter_count(self.params):,}",
            "step": f"{self.step:,}",
            "run directory": str(self.directory or "none"),
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in rows.items()
        )
        return f"<table>{cells}</table>"

    @property
    def metrics(self) -> "pandas.DataFrame":
        """The lines of its metrics.jsonl, a column for each field.

        `run.metrics[run.metrics.split == "validation"]` has those of validation. Empty
        for an imported model.

        Raises:
          UserError: it is not of a run directory.
        """
        if self.directory is None:
            raise UserError("this run has no directory, and so no metrics.")
        return metrics.frame(self.directory)

    def on_mesh(self) -> contextlib.AbstractContextManager:
        """A context in which the model computes on the run's mesh."""
        mesh = self._mesh
        if mesh is None:
            return contextlib.nullcontext()
        return on_mesh(mesh, self._rules)

    @property
    def row_multiple(self) -> int:
        """The number of batch shards, of which the rows of a batch are a multiple."""
        return 1 if self._mesh is None else batch_shards(self._mesh, self._rules)

    @property
    def _mesh(self) -> jax.sharding.Mesh | None:
        sharding = jax.tree.leaves(self.params)[0].sharding
        return sharding.mesh if isinstance(sharding, NamedSharding) else None

    @property
    def _where(self) -> tuple[jax.sharding.Mesh, LogicalRules]:
        mesh = self._mesh
        if mesh is None:
            raise UserError(
                "the parameters of this run are on no mesh; expected a run "
                "of fmjax.load."
            )
        return mesh, self._rules

    def _replaced(self, fields: Mapping[str, Any]) -> "Run":
        """The run with other fields, which shares compiled programs where it can."""
        found = dataclasses.replace(self, **fields)
        if found.model == self.model:
            found.__dict__.update({name: getattr(self, name) for name in _COMPILED})
        return found

    @property
    def _rules(self) -> LogicalRules:
        return self.config.mesh.all_rules if self.rules is None else self.rules

    def _padded(self, array: np.ndarray) -> np.ndarray:
        more = -len(array) % self.row_multiple
        return np.pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1))

    def _of_rows(self, name: str, x: Array, rows: Mapping[str, int]) -> Array:
        """An output without the padding rows."""
        if x.ndim == 0:  # a scalar of the model, such as logit_scale
            return x
        count = next(iter(rows.values()))
        if rows_apart(self.model):
            if name == "logits":
                return x[: rows["images"], : rows["tokens"]]
            count = rows["images" if name.startswith("image_") else "tokens"]
        return x[:, :count] if name.endswith("hidden_states") else x[:count]

    def _of_texts(
        self, compute: Callable[..., Array], rows: Sequence[TextRow], batch_size: int
    ) -> list[np.ndarray]:
        """What `compute(variables, text)` gives for each row."""
        size = min(batch_size, len(rows))
        size += -size % self.row_multiple
        variables = {"params": self.params, **self.extra}
        reads_types = "token_types" in array_names(self.model)

        def of_batch(arrays):
            if not reads_types:
                arrays = {n: x for n, x in arrays.items() if n != "token_types"}
            return compute(variables, TextInputs(**arrays))

        padding = self.tokenizer.pad_id or 0
        with self.on_mesh():
            return of_rows(of_batch, rows, size, self.model.max_length, padding)

    @functools.cached_property
    def _embed_texts(self):
        of_model = functools.partial(embed_texts, self.model)
        return jax.jit(of_model, static_argnames="pooling")

    @functools.cached_property
    def _class_logits(self):
        return jax.jit(functools.partial(class_logits, self.model))

    @functools.cached_property
    def _label_likelihoods(self):
        return jax.jit(functools.partial(label_likelihoods, self.model))

    @functools.cached_property
    def _token_logits(self):
        return jax.jit(functools.partial(token_logits, self.model))

    def _labels(self, classes: int) -> tuple[str, ...]:
        names = self.config.labels
        made_up = tuple(f"LABEL_{i}" for i in range(classes))
        return names if len(names) == classes else made_up

    @functools.cached_property
    def _apply(self):
        def apply(variables, inputs, hidden_states):
            # A user's model need not have this argument.
            options = {"hidden_states": True} if hidden_states else {}
            inputs = call_arguments(self.model, inputs)
            return self.model.apply(variables, **inputs, **options)

        return jax.jit(apply, static_argnums=2)

    @functools.cached_property
    def _apply_for_weights(self):
        def apply(variables, inputs):
            inputs = call_arguments(self.model, inputs)
            _, found = self.model.apply(
                variables, **inputs, mutable=[ATTENTION_WEIGHTS]
            )
            return found[ATTENTION_WEIGHTS]

        return jax.jit(apply)


def _with_prompt(texts: Sequence[str], prompt: str) -> Sequence[str]:
    if isinstance(texts, str):
        return texts  # Refused where texts are read.
    return [prompt + text if isinstance(text, str) else text for text in texts]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size = {batch_size}: expected at least 1.")
