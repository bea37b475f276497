"""Families of models begin from plain choices, whatever was included before."""

import dataclasses

import pytest

from fmjax.config import files as config_files
from fmjax.config.load import load_experiment
from fmjax.config.statements import Binding, parse
from fmjax.configurable import fields_of
from fmjax.models.language.bert import Bert
from fmjax.models.language.electra import Electra
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.disentangled import Disentangled
from fmjax.models.layers.latent import Latent
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.multipliers import Multipliers
from fmjax.models.layers.patch_rotary import PatchRotary
from fmjax.models.layers.position_bias import Alibi, RelativeBuckets, RelativeGrid
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.vit import ViT

MODELS = (GPT, Bert, Electra, Seq2Seq, ViT)
PARTS = (Rotary, PatchRotary, Alibi, RelativeBuckets, Disentangled, RelativeGrid)
CLASSES = (*MODELS, TransformerConfig, *PARTS, Latent, Experts, Multipliers)
# How a model is computed or laid out; and a part whose own fields are bound.
NO_CHOICES = ("vocab_multiple", "dtype", "quantized", "multipliers")
PLAIN = "models/families/plain.gin"


def choices(cls) -> set[str]:
    """Fields but those that every config must bind, which are sizes and stacks."""
    return {
        field.name
        for field in fields_of(cls)
        if field.default is not dataclasses.MISSING
        and field.name not in NO_CHOICES
        and not field.metadata.get("runtime")
    }


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.gin_name)
def test_plain_binds_every_choice_to_its_default(cls):
    text = (config_files.configs_folder() / PLAIN).read_text()
    bound = {
        s.field: s.value
        for s in parse(text, PLAIN)
        if isinstance(s, Binding) and s.owner == cls.gin_name
    }
    assert choices(cls) <= set(bound)
    defaults = {field.name: field.default for field in fields_of(cls)}
    assert bound == {name: defaults[name] for name in bound}


# Families, and models with many choices that are included before them.
BEFORE = {
    "llama": ("deepseek_v3", "gpt_oss_20b", "gptj_6b", "opt_350m", "qwen1_5_moe_a2_7b"),
    "phi": ("gemma3_4b", "llama3_1_8b", "smollm3_3b", "olmo_7b", "gpt_neo_2_7b"),
    "roberta": ("albert_base", "modernbert_base", "olmo2_7b", "deberta_v3_base"),
    "t5": ("umt5_base", "m2m_100_418m", "alexatm_20b", "falcon_7b", "granite3_8b"),
    "vit": ("dinov3_b16", "dinov2_b14_registers", "beit_b16", "command_r_35b"),
}


@pytest.mark.parametrize("family", BEFORE)
def test_a_family_is_the_same_after_other_models(family, tmp_path):
    def read(*names):
        lines = ["include 'quickstart.gin'", *(f"include '{name}'" for name in names)]
        (tmp_path / "run.gin").write_text("\n".join(lines))
        return load_experiment(tmp_path / "run.gin").objective

    own = f"models/families/{family}.gin"
    sizes = tmp_path / "sizes.gin"
    sizes.write_text(
        "transformer.num_layers = 2\n"
        "transformer.embed_dim = 1024\n"
        "transformer.num_heads = 16\n"
    )
    before = [f"models/{name}.gin" for name in BEFORE[family]]
    assert read(*before, own, str(sizes)) == read(own, str(sizes))
