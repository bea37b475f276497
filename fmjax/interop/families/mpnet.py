"""MPNet (Song et al. 2020): BERT with T5's relative position bias."""

from fmjax.interop.entries import constant, fixed
from fmjax.interop.families.bert import (
    EXACT_GELU,
    POSITION_IDS,
    RENAMED,
    Labels,
    embeddings,
    heads,
    sizes,
    token_architectures,
)
from fmjax.interop.families.roberta import CLASSIFIER, HEAD, PaddingOffset, copies
from fmjax.interop.family import Architecture, Family
from fmjax.interop.rows import Row, attention, feed_forward, linear, norm
from fmjax.models.language.bert import Bert
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.objectives.masked_lm import MaskedLM

_LAYER, _BLOCK = "mpnet.encoder.layer.{layer}", "stack/layers"

MPNET = Family(
    model_type="mpnet",
    model=Bert,
    objective=MaskedLM,
    entries=(
        *sizes("transformer", vocab_size=30527, type_vocab_size=None),
        PaddingOffset(padding=1),
        # transformers computes 32 buckets, whatever the option is.
        constant("relative_attention_num_buckets", 32),
        fixed({"transformer.position_bias": RelativeBuckets(32, 128)}),
    ),
    rows=(
        *embeddings("mpnet"),
        Row(
            "stack/relative_bias/table", "mpnet.encoder.relative_attention_bias.weight"
        ),
        *attention(
            f"{_BLOCK}/attention",
            f"{_LAYER}.attention.attn",
            "q k v",
            f"{_LAYER}.attention.attn.o",
        ),
        *norm(f"{_BLOCK}/attention_norm", f"{_LAYER}.attention.LayerNorm"),
        *feed_forward(
            f"{_BLOCK}/mlp", _LAYER, in_="intermediate.dense", out="output.dense"
        ),
        *norm(f"{_BLOCK}/mlp_norm", f"{_LAYER}.output.LayerNorm"),
    ),
    architectures={
        "MPNetForMaskedLM": Architecture((heads(True), EXACT_GELU), HEAD),
        "MPNetForSequenceClassification": Architecture(
            (heads(False, "tanh"), Labels()), CLASSIFIER
        ),
        **token_architectures("MPNet"),
        "MPNetModel": Architecture(
            (heads(False, "tanh"),), linear("pool", "mpnet.pooler.dense"), bare=True
        ),
    },
    prefix="mpnet.",
    copies=copies("mpnet"),
    constants=POSITION_IDS,
    renamed=RENAMED,
)
