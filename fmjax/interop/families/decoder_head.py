"""The heads of a decoder-only model: tied to the table, untied, or of other tasks."""

from fmjax.interop.entries import Entry, fixed, ignored, option
from fmjax.interop.families.bert import Labels
from fmjax.interop.family import Architecture
from fmjax.interop.rows import LINEAR, Row, linear

HEAD = Row("language_head/kernel", "lm_head.weight", "d v -> v d")
WITH_BIAS = (HEAD, Row("language_head/bias", "lm_head.bias"))
# A class without a head has nothing to untie: the model here uses the table as head.
ALWAYS_TIED = option(
    "tie_word_embeddings",
    "tie_embeddings",
    bool,
    True,
    to_field={True: True, False: True},
)


def architectures(
    headed: str, bare: str, tied: bool = True, *, rows: tuple[Row, ...] = (HEAD,)
) -> dict[str, Architecture]:
    """The architectures of a family: with and without language head.

    Args:
      headed: name of the class with the head.
      bare: name of the class without the head.
      tied: transformers' default of tie_word_embeddings.
      rows: rows of the weights of the head.
    """
    given = option("tie_word_embeddings", "tie_embeddings", bool, tied)
    biased = any(row.path.endswith("/bias") for row in rows)
    with_bias = (fixed({"head_bias": True}),) if biased else ()
    return {
        headed: Architecture((given, *with_bias), rows),
        bare: Architecture((ALWAYS_TIED,)),
    }


def text_heads(
    classes: str, tokens: str = "", spans: bool = False
) -> dict[str, Architecture]:
    """Decoders that classify texts, tokens, and find answers.

    A reward model is one that classifies texts, with one class.

    Args:
      classes: prefix of the names of transformers' classes.
      tokens: name of the layer that classifies tokens; "" if there is no such class.
      spans: whether there is a class that finds answers.
    """
    # Dropout of the heads, which is that of the transformer here.
    entries = (ALWAYS_TIED, ignored("classifier_dropout"))
    score = Row("classifier/kernel", "score.weight", LINEAR)
    found = {
        f"{classes}ForSequenceClassification": Architecture(
            (*entries, Labels()), (score,)
        )
    }
    if tokens:
        found[f"{classes}ForTokenClassification"] = Architecture(
            (*entries, Labels("token_classes"), ignored("hidden_dropout")),
            linear("token_heads/classes", tokens),
        )
    if spans:
        found[f"{classes}ForQuestionAnswering"] = Architecture(
            (*entries, fixed({"spans": True})),
            linear("token_heads/spans", "qa_outputs"),
        )
    return found


def read_twice(classes: str, *entries: Entry) -> dict[str, Architecture]:
    """Encoder-decoders that have the same text on both sides.

    One classifies it by its last token, the other finds answers in it.

    Args:
      classes: prefix of the names of transformers' classes.
      *entries: entries in addition.
    """
    return {
        f"{classes}ForSequenceClassification": Architecture(
            (*entries, Labels()),
            (
                *linear("class_head/dense", "classification_head.dense"),
                *linear("class_head/out", "classification_head.out_proj"),
            ),
        ),
        f"{classes}ForQuestionAnswering": Architecture(
            (*entries, fixed({"spans": True})),
            linear("token_heads/spans", "qa_outputs"),
        ),
    }
