"""Text models that cannot be are refused when they are configured, by field."""

import dataclasses

import pytest

from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.electra import Electra
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.transformer_config import TransformerConfig

BLOCK = TransformerConfig(num_layers=1, embed_dim=8, num_heads=2)
CLAMPED = dataclasses.replace(BLOCK, activation="clamped_swiglu", gated_mlp=True)
SIZES = {"vocab_size": 20, "max_length": 5}


def test_a_gated_activation_is_refused_where_a_head_has_no_gate():
    named = r"{}: transformer\.activation = 'clamped_swiglu'"
    with pytest.raises(UserError, match=named.format(r"bert\.transformer")):
        Bert(CLAMPED, **SIZES)
    assert Bert(CLAMPED, **SIZES, language_head=False)
    with pytest.raises(UserError, match=named.format(r"electra\.discriminator")):
        Electra(CLAMPED, None, **SIZES)
    with pytest.raises(UserError, match=named.format(r"electra\.generator")):
        Electra(BLOCK, CLAMPED, **SIZES)


def test_parts_whose_output_nothing_reads_are_refused():
    with pytest.raises(UserError, match=r"bert\.pooling = 'mean'.*bert\.pooler"):
        Bert(BLOCK, **SIZES, pooling="mean")
    with pytest.raises(UserError, match=r"bert\.token_transform = 'gelu'.*bert\.spans"):
        Bert(BLOCK, **SIZES, token_transform="gelu")


@pytest.mark.parametrize("value", [0, -2])
@pytest.mark.parametrize(
    ("model", "stacks", "field"),
    [
        (GPT, 1, "embed_dim"),
        (GPT, 1, "num_classes"),
        (GPT, 1, "token_classes"),
        (Bert, 1, "embed_dim"),
        (Bert, 1, "num_classes"),
        (Bert, 1, "token_classes"),
        (Seq2Seq, 2, "num_classes"),
        (Electra, 2, "embed_dim"),
    ],
)
def test_widths_and_classes_below_one_are_refused(model, stacks, field, value):
    named = rf"{model.gin_name}\.{field} = {value}: expected at least 1, or None"
    with pytest.raises(UserError, match=named):
        model(*[BLOCK] * stacks, **SIZES, positions="learned", **{field: value})
