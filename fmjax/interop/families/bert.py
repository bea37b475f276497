"""BERT (Devlin et al. 2019), and what similar encoders share with it."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import (
    Entry,
    Values,
    activation,
    constant,
    fixed,
    ignored,
    option,
    same,
)
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import Row, attention, feed_forward, linear, norm
from fmjax.models.language.bert import Bert
from fmjax.objectives.masked_lm import MaskedLM

# Names in files that were converted from TensorFlow.
RENAMED = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)
POSITION_IDS = r"embeddings\.position_ids"


class Labels:
    """The number of classes, from num_labels or the names of the labels."""

    def __init__(self, field: str = "num_classes"):
        """Sets the field of the model that has the number."""
        self.fields = (field,)

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        names = options.take("id2label", dict, None)
        count = options.take("num_labels", int, len(names) if names else 2)
        return {self.fields[0]: count}

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        count = values[self.fields[0]]
        if count is None:
            raise UserError(f"{self.fields[0]} = None; expected a number.")
        names = {str(i): f"LABEL_{i}" for i in range(count)}
        return {"id2label": names, "label2id": {n: int(i) for i, n in names.items()}}


def heads(language: bool = False, pooler: str = "none", pairs: bool = False) -> Entry:
    """An entry for the heads of a model: language head, pooler, next-sentence head."""
    return fixed({"language_head": language, "pooler": pooler, "next_sentence": pairs})


def token_architectures(
    classes: str, head: Entry | None = None, *more: Entry
) -> dict[str, Architecture]:
    """Encoders that classify tokens and that find answers.

    Args:
      classes: prefix of the names of transformers' classes.
      head: the entry of other heads; by default there are none.
      *more: entries in addition.
    """
    entries = (heads() if head is None else head, *more)
    return {
        f"{classes}ForTokenClassification": Architecture(
            (*entries, Labels("token_classes")),
            linear("token_heads/classes", "classifier"),
        ),
        f"{classes}ForQuestionAnswering": Architecture(
            (*entries, fixed({"spans": True})),
            linear("token_heads/spans", "qa_outputs"),
        ),
    }


# Heads with the exact GELU, whatever hidden_act is.
EXACT_GELU = fixed({"transformer.activation": "gelu"})
_TYPES = "num_token_types"
NO_TYPES = fixed({_TYPES: 0})


def masked_head(transform: str, layer_norm: str, bias: str) -> tuple[Row, ...]:
    """Rows of the language head's weights, by their names in the file."""
    return (
        *linear("masked_head/transform", transform),
        *norm("masked_head/norm", layer_norm),
        Row("masked_head/vocabulary/bias", bias),
    )


def sizes(owner: str, **defaults: Any) -> tuple[Entry, ...]:
    """Entries that all encoders of this kind share.

    Args:
      owner: the field with the encoder's sizes.
      **defaults: defaults other than BERT's, by the names of the options, "dropout"
        for both; type_vocab_size = None for a family without token types.
    """
    take = {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "dropout": 0.1,
        "vocab_size": 30522,
        "type_vocab_size": 2,
    } | defaults
    c, types, dropped = owner, take["type_vocab_size"], take["dropout"]
    return (
        option("num_hidden_layers", f"{c}.num_layers", int, take["num_hidden_layers"]),
        option("hidden_size", f"{c}.embed_dim", int, take["hidden_size"]),
        option(
            "num_attention_heads", f"{c}.num_heads", int, take["num_attention_heads"]
        ),
        option("intermediate_size", f"{c}.mlp_dim", int, take["intermediate_size"]),
        activation("hidden_act", f"{c}.activation", take["hidden_act"]),
        option("layer_norm_eps", f"{c}.norm_epsilon", float, take["layer_norm_eps"]),
        option("hidden_dropout_prob", f"{c}.dropout", float, dropped),
        same("classifier_dropout", f"{c}.dropout", float),
        option(
            "attention_probs_dropout_prob", f"{c}.attention_dropout", float, dropped
        ),
        option("initializer_range", f"{c}.init_std", float, 0.02),
        option("vocab_size", "vocab_size", int, take["vocab_size"]),
        NO_TYPES if types is None else option("type_vocab_size", _TYPES, int, types),
        fixed({f"{c}.norm_position": "post"}),
        constant("tie_word_embeddings", True),
        constant("position_embedding_type", "absolute"),
        constant("is_decoder", False),
        constant("add_cross_attention", False),
    )


MAX_LENGTH = option("max_position_embeddings", "max_length", int, 512)


def encoder(name: str, stack: str, projections: str) -> tuple[Row, ...]:
    """Rows of the weights of the inputs and the stack.

    Args:
      name: prefix of the tensors' names.
      stack: path of the stack.
      projections: names of the query, key and value projections.
    """
    layer, block = f"{name}.encoder.layer.{{layer}}", f"{stack}/layers"
    return (
        *embeddings(name),
        *attention(
            f"{block}/attention",
            f"{layer}.attention.self",
            projections,
            f"{layer}.attention.output.dense",
        ),
        *norm(f"{block}/attention_norm", f"{layer}.attention.output.LayerNorm"),
        *feed_forward(
            f"{block}/mlp", layer, in_="intermediate.dense", out="output.dense"
        ),
        *norm(f"{block}/mlp_norm", f"{layer}.output.LayerNorm"),
    )


def embeddings(name: str) -> tuple[Row, ...]:
    """Rows of the weights of the inputs; `name` is the prefix of the tensors' names."""
    name = f"{name}.embeddings"
    return (
        Row("tokens/table", f"{name}.word_embeddings.weight"),
        Row("inputs/positions/table", f"{name}.position_embeddings.weight"),
        Row("inputs/token_types/table", f"{name}.token_type_embeddings.weight"),
        *norm("inputs/norm", f"{name}.LayerNorm"),
    )


_BERT_MASKED = masked_head(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
)
_BERT_POOL = linear("pool", "bert.pooler.dense")
_BERT_PAIRS = linear("sentence_head", "cls.seq_relationship")

BERT = Family(
    model_type="bert",
    model=Bert,
    objective=MaskedLM,
    entries=(
        *sizes("transformer"),
        MAX_LENGTH,
        # Options of Google's multilingual configs, which no code reads.
        ignored("pooler_type pooler_fc_size pooler_size_per_head"),
        ignored("pooler_num_attention_heads pooler_num_fc_layers"),
    ),
    rows=encoder("bert", "stack", "query key value"),
    architectures={
        "BertForMaskedLM": Architecture((heads(True),), _BERT_MASKED),
        "BertForPreTraining": Architecture(
            (heads(True, "tanh", True),), _BERT_MASKED + _BERT_POOL + _BERT_PAIRS
        ),
        "BertForNextSentencePrediction": Architecture(
            (heads(False, "tanh", True),), _BERT_POOL + _BERT_PAIRS
        ),
        "BertForSequenceClassification": Architecture(
            (heads(False, "tanh"), Labels()),
            _BERT_POOL + linear("classifier", "classifier"),
        ),
        "BertModel": Architecture((heads(False, "tanh"),), _BERT_POOL, bare=True),
        **token_architectures("Bert"),
    },
    prefix="bert.",
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    constants=POSITION_IDS,
    renamed=RENAMED,
)
