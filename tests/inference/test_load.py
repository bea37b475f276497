"""Loading run directories, and calling what was loaded."""

import re

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

import fmjax
from fmjax.config.render import render
from fmjax.data.tokenizers.tokenizers import ByteTokenizer
from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.run import directory as run_dir
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.checkpoint import checkpoints, read_model, saved_state
from fmjax.training.experiment import Experiment

MODEL = GPT(TransformerConfig(2, 12, 2, init_std=0.3, dtype="float32"), 259, 16)
TOKENS = np.random.default_rng(0).integers(259, size=(3, 7))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A run directory, and the parameters in it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    shapes = nn.unbox(jax.eval_shape(MODEL.init, jax.random.key(0), tokens))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(scale=0.3, size=s.shape).astype(np.float32), shapes
    )
    run_dir.write(folder, render(Experiment(CausalLM(MODEL))))
    ByteTokenizer().save(folder / run_dir.TOKENIZER)
    checkpoints.save_model(folder, params)
    return folder, params


@pytest.fixture(scope="module")
def run(stored):
    return fmjax.load(stored[0])


def test_a_run_comes_back_whole(stored, run):
    assert run.model == MODEL
    assert run.config == Experiment(CausalLM(MODEL))
    assert run.step == 0
    assert run.tokenizer.vocab_size == 259
    jax.tree.map(np.testing.assert_array_equal, run.params, stored[1])


def test_a_run_is_printed_in_one_line(stored, run):
    count = sum(array.size for array in jax.tree.leaves(stored[1]))
    assert repr(run) == f"Run(causal_lm of gpt, {count:,} parameters, step 0)"
    cells = re.findall(r"<t[hd][^>]*>([^<]*)<", run._repr_html_())
    assert cells[:4] == ["objective", "causal_lm", "model", "gpt"]
    assert f"{run.step:,}" in cells


def test_logits_are_the_models_without_padding(stored, run):
    expected = MODEL.apply({"params": stored[1]}, TOKENS)
    for tokens in (TOKENS, TOKENS.tolist(), jax.numpy.asarray(TOKENS)):
        out = run(tokens=tokens)
        assert out["logits"].shape == (3, 7, 259)
        assert out["logits"].dtype == np.float32
        for name in ("logits", "hidden"):
            np.testing.assert_allclose(out[name], expected[name], atol=1e-5)


def test_mask_segments_and_positions_reach_the_model(run):
    plain = run(tokens=TOKENS)["logits"]
    mask = np.ones((3, 7), bool)
    mask[:, 2] = False
    segments = np.repeat([[1, 1, 1, 2, 2, 2, 2]], 3, axis=0)
    positions = np.repeat([[0, 1, 2, 0, 1, 2, 3]], 3, axis=0)
    # Without the third token, the others' keys keep their places.
    masked = run(tokens=TOKENS, padding_mask=mask)["logits"]
    np.testing.assert_allclose(masked[:, :2], plain[:, :2], atol=1e-5)
    assert np.abs(masked[:, 3:] - plain[:, 3:]).max() > 1e-2
    # Packed documents are read as each by itself; a mask holds within them.
    packed = run(tokens=TOKENS, segment_ids=segments, positions=positions)["logits"]
    apart = run(tokens=TOKENS[:, 3:])["logits"]
    np.testing.assert_allclose(packed[:, 3:], apart, atol=1e-5)
    both = run(
        tokens=TOKENS, segment_ids=segments, positions=positions, padding_mask=mask
    )
    np.testing.assert_allclose(both["logits"][:, :2], plain[:, :2], atol=1e-5)
    np.testing.assert_allclose(both["logits"][:, 3:], apart, atol=1e-5)
    mask[:, 4] = False
    both = run(
        tokens=TOKENS, segment_ids=segments, positions=positions, padding_mask=mask
    )
    assert np.abs(both["logits"][:, 5:] - apart[:, 2:]).max() > 1e-2


def test_a_mesh_may_be_given(stored, run):
    spread = fmjax.load(stored[0], mesh=MeshConfig(data=-1, fsdp=2, tensor=2))
    np.testing.assert_allclose(
        spread(tokens=TOKENS)["logits"], run(tokens=TOKENS)["logits"], atol=1e-5
    )
    (weights,) = spread.attention_weights(tokens=TOKENS).values()
    (expected,) = run.attention_weights(tokens=TOKENS).values()
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert weights.shape[1] == len(TOKENS)
    assert not np.triu(weights, 1).any()  # of tokens to come


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=-1, fsdp=2, tensor=2)])
def test_parameters_are_loaded_in_a_dtype_and_never_all_in_float32(
    mesh, stored, monkeypatch
):
    read, sizes = saved_state.SavedState.read, []

    def watched(self, tree):
        arrays = read(self, tree)
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(arrays)))
        return arrays

    monkeypatch.setattr(saved_state.SavedState, "read", watched)
    monkeypatch.setattr(read_model, "_READ_BYTES", 4000)
    half = fmjax.load(stored[0], mesh=mesh, dtype="bfloat16")
    leaves = jax.tree.leaves(stored[1])
    largest = max(leaf.nbytes for leaf in leaves)
    assert max(sizes) <= max(4000, largest) < sum(sizes)
    assert sum(sizes) == sum(leaf.nbytes for leaf in leaves)
    expected = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), stored[1])
    jax.tree.map(np.testing.assert_array_equal, half.params, expected)
    assert {str(x.dtype) for x in jax.tree.leaves(half.params)} == {"bfloat16"}
    plain = fmjax.load(stored[0], mesh=mesh)
    places = [jax.tree.map(lambda x: x.sharding, run.params) for run in (half, plain)]
    assert places[0] == places[1]
    # As float32 parameters of the same values compute.
    wide = jax.tree.map(lambda x: x.astype(np.float32), expected)
    logits = MODEL.apply({"params": wide}, TOKENS)["logits"]
    np.testing.assert_allclose(half(tokens=TOKENS)["logits"], logits, atol=1e-5)
    with pytest.raises(UserError, match="dtype = 'float8': expected one of float32"):
        fmjax.load(stored[0], dtype="float8")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"tokens": [[]]},
            r"tokens: shape \(1, 0\); expected at least one token in each row",
        ),
        ({"tokens": [[0, 259]]}, "tokens: found 0 to 259; expected 0 to 258"),
        ({"tokens": [[-1]]}, "found -1"),
        ({"tokens": [[2**40]]}, "found 1099511627776"),
        ({"tokens": [[0.5]]}, "expected integers"),
        ({"tokens": [[1, 2], [3]]}, "rows have different lengths"),
        ({"tokens": [1, 2]}, r"shape \(2,\); expected \[B, T\]"),
        ({"tokens": [[1, 2]], "padding_mask": [[1]]}, "padding_mask: shape"),
        ({"tokens": [[1]], "mask": [[1]]}, "mask is now called padding_mask"),
        ({"tokens": [[1]], "positions": [[16]]}, "positions: found 16"),
        ({"tokens": [[1] * 17]}, "gpt.max_length = 16"),
    ],
)
def test_arrays_that_do_not_fit_are_named(run, inputs, message):
    with pytest.raises(UserError, match=message):
        run(**inputs)


def test_directories_that_are_no_runs_are_named(tmp_path, stored):
    with pytest.raises(UserError, match="no such directory"):
        fmjax.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"config\.gin"):
        fmjax.load(tmp_path)
    run_dir.write(tmp_path, render(Experiment(CausalLM(MODEL))))
    with pytest.raises(UserError, match="no checkpoint"):
        fmjax.load(tmp_path)
    with pytest.raises(UserError, match="step 7"):
        fmjax.load(stored[0], step=7)


def test_a_run_without_tokenizer_loads(tmp_path, stored):
    run_dir.write(tmp_path, render(Experiment(CausalLM(MODEL))))
    checkpoints.save_model(tmp_path, stored[1])
    assert fmjax.load(tmp_path).tokenizer is None
