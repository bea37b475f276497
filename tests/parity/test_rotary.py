"""Rotary positions against transformers: frequencies, rotations, imported models."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from parity.models_of_transformers import (
    ENDS,
    LENGTH,
    VOCAB,
    close,
    edit_config,
    random_model,
    text,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.stablelm import modeling_stablelm

import fmjax
from fmjax.errors import UserError
from fmjax.interop.families import FAMILIES
from fmjax.interop.families.rope import Rope
from fmjax.interop.hugging_face import import_model
from fmjax.interop.options import Options
from fmjax.models.layers.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    YarnScaling,
)
from fmjax.models.layers.rotary import Rotary, rotate
from fmjax.models.layers.transformer_config import TransformerConfig

LONG = {
    "short_factor": np.linspace(1, 1.5, 16).tolist(),
    "long_factor": np.linspace(1, 30, 16).tolist(),
}
SCALINGS = {
    "linear": ({"factor": 4.0}, LinearScaling(4.0)),
    "dynamic": ({"factor": 4.0}, DynamicScaling(4.0, 64)),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        Llama3Scaling(8.0, 1.0, 4.0, 64),
    ),
    "yarn": ({"factor": 4.0}, YarnScaling(4.0, 64)),
    "yarn, all told": (
        {
            "factor": 16.0,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "attention_factor": 1.3,
            "truncate": False,
        },
        YarnScaling(16.0, 64, 20.0, 2.0, 1.3, False),
    ),
    "longrope": (
        LONG | {"factor": 8.0},
        LongScaling(tuple(LONG["short_factor"]), tuple(LONG["long_factor"]), 64, 8.0),
    ),
}


def theirs(name, options, length, fraction, theta=1e4):
    """Inverse frequencies and attention scaling for heads of 32 / fraction."""
    kind = name.split(",")[0]
    parameters = {
        "rope_type": kind,
        "rope_theta": theta,
        "partial_rotary_factor": fraction,
        **options,
    }
    if kind in ("llama3", "yarn", "longrope"):
        parameters["original_max_position_embeddings"] = 64
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        head_dim=round(32 / fraction),
        max_position_embeddings=64,
        rope_parameters=parameters,
    )
    return ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)


@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize("length", [9, 64, 200])
@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies_are_transformers(name, length, fraction, theta):
    options, scaling = SCALINGS[name]
    want, want_factor = theirs(name, options, length, fraction, theta)
    rotary = Rotary(theta, fraction, scaling)
    positions = jnp.arange(length)[None]
    head_dim = round(32 / fraction)
    got, factor = rotary.frequencies(head_dim, positions)
    np.testing.assert_allclose(got.reshape(-1), want, rtol=2e-6)
    np.testing.assert_allclose(factor, want_factor, rtol=1e-7)
    sin, cos = rotary.tables(head_dim, positions)
    angle = np.arange(length)[:, None] * want.double().numpy()
    np.testing.assert_allclose(sin[0, :, 0], np.sin(angle) * want_factor, atol=2e-4)
    np.testing.assert_allclose(cos[0, :, 0], np.cos(angle) * want_factor, atol=2e-4)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_a_rows_length_is_its_own(name):
    scaling = SCALINGS[name][1]
    rotary = Rotary(scaling=scaling)
    positions = np.arange(100)[None] % [[100], [50], [100]]
    together, _ = rotary.frequencies(32, jnp.asarray(positions))
    for row, found in zip(positions, together):
        alone, _ = rotary.frequencies(32, jnp.asarray(row[None]))
        np.testing.assert_array_equal(found, alone[0])
    assert (together[0] != together[1]).any()


def test_layers_with_a_window_take_the_local_base_as_in_gemma3():
    config = transformers.Gemma3TextConfig(
        head_dim=32,
        layer_types=["sliding_attention", "full_attention"],
        num_hidden_layers=2,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    )
    module = modeling_gemma3.Gemma3RotaryEmbedding(config)
    rotary = Rotary(1e6, scaling=LinearScaling(8.0), local_theta=1e4)
    positions = np.arange(40)[None]
    for kind, local in (("sliding_attention", True), ("full_attention", False)):
        cos, sin = module(torch.zeros(1), torch.from_numpy(positions), kind)
        got = rotary.tables(32, jnp.asarray(positions), jnp.asarray(local))
        np.testing.assert_allclose(got[0][0, :, 0], sin[0, :, :16], atol=2e-5)
        np.testing.assert_allclose(got[1][0, :, 0], cos[0, :, :16], atol=2e-5)


def test_a_part_of_a_head_turns_as_in_stablelm():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 11, 3, 16)).astype(np.float32)
    positions = rng.integers(0, 50, (2, 11))
    config = transformers.StableLmConfig(
        hidden_size=48,
        num_attention_heads=3,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.25,
        },
    )
    module = modeling_stablelm.StableLmRotaryEmbedding(config)
    cos, sin = module(torch.from_numpy(x), torch.from_numpy(positions))
    turning = torch.from_numpy(x[..., :4])
    want, _ = modeling_stablelm.apply_rotary_pos_emb(turning, turning, cos, sin, 2)
    want = np.concatenate([want, x[..., 4:]], axis=-1)
    tables = Rotary(100.0, 0.25).tables(16, jnp.asarray(positions))
    np.testing.assert_allclose(rotate(jnp.asarray(x), *tables), want, atol=1e-5)


LLAMA = dict(
    vocab_size=VOCAB,
    hidden_size=36,
    intermediate_size=50,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=LENGTH,
    **ENDS,
)


@pytest.mark.parametrize(
    "rope_scaling",
    [
        {"type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
)
def test_scaling_spelled_as_in_version_4_is_read(tmp_path, rope_scaling):
    # Llama 3.1 to 3.3 are written so.
    options = {**LLAMA, "rope_parameters": {"rope_theta": 500.0, **rope_scaling}}
    theirs = random_model("LlamaForCausalLM", options)
    theirs.save_pretrained(tmp_path / "hf")
    edit_config(
        tmp_path / "hf",
        rope_parameters=None,
        rope_theta=500.0,
        rope_scaling=rope_scaling,
    )
    import_model(tmp_path / "hf", tmp_path / "run")
    tokens, _ = text()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(tokens)).logits
    close(fmjax.load(tmp_path / "run")(tokens=tokens)["logits"], expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotary(theta=0.5), r"rotary\.theta"),
        (lambda: Rotary(fraction=0.0), r"rotary\.fraction"),
        (lambda: LinearScaling(0.5), r"rope_linear\.factor"),
        (lambda: Llama3Scaling(low_freq_factor=4.0), r"rope_llama3\.low_freq_factor"),
        (lambda: YarnScaling(4.0, 64, beta_slow=40.0), r"rope_yarn\.beta_slow"),
        (lambda: config(Rotary(fraction=0.2)), r"rotary\.fraction"),
        (lambda: Rotary(local_scaling=LinearScaling(2.0)), r"rotary\.local_scaling"),
        (lambda: config(Rotary(local_theta=1e4)), r"transformer\.global_every"),
        (
            lambda: config(Rotary(scaling=LongScaling((1.0,), (1.0,), 64, 2.0))),
            r"rope_long\.short_factors",
        ),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def config(rotary):
    return TransformerConfig(1, 32, 2, rotary=rotary)


@pytest.mark.parametrize(
    ("config", "stated"),
    [
        (transformers.GptOssConfig, {}),
        (
            transformers.Phi3Config,
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0, 1.5],
                    "long_factor": [2.0, 7.0],
                },
            },
        ),
        (
            transformers.ModernBertConfig,
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
    ],
    ids=["gpt_oss", "phi3", "modernbert, both kinds of layers"],
)
def test_scaling_that_a_config_does_not_state_is_transformers(config, stated):
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes["head_dim"] = 4
    family = next(f for f in FAMILIES if f.model_type == config.model_type)
    (rope,) = (entry for entry in family.entries if isinstance(entry, Rope))
    expected = config(**sizes, **stated).to_dict()
    found, whole = (
        rope.read(Options(dict(options), "config.json"))["transformer.rotary"]
        for options in (sizes | stated, expected)
    )
    assert found == whole
    assert found.scaling is not None


def test_families_are_listed_once():
    assert len(FAMILIES) == len(set(map(id, FAMILIES)))
