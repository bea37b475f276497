"""Positions of patches are interpolated for images of another size, and those alone."""

import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util
from on_meshes import build, random_state

from fmjax.cli.main import main
from fmjax.errors import UserError
from fmjax.inference.load import load
from fmjax.models.language.bert import Bert
from fmjax.models.layers.image_positions import resize_positions
from fmjax.models.layers.transformer import unstack_layers
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.m3ae import M3AE
from fmjax.models.vision.vit import ViT
from fmjax.objectives.classification import Classification
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.masked_vision_language import MaskedVisionLanguage
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import MeshConfig, on_mesh
from fmjax.training.checkpoint.checkpoints import save_model
from fmjax.training.copy_plan import Source, plan_copies
from fmjax.training.init_from import InitFrom
from fmjax.training.start_from import start_from
from fmjax.training.state import abstract_variables, plan_state

LAYERS = 2
TINY = pathlib.Path(__file__).parents[1] / "e2e" / "tiny_images.gin"


def transformer(scanned=True):
    return TransformerConfig(
        num_layers=LAYERS, embed_dim=16, num_heads=2, scan_layers=scanned
    )


def vit(image_size, scanned=True, **fields):
    """A classifier of grey images with learned positions and a class token."""
    fields = {"patch_size": 2, "channels": 1, "num_classes": 10} | fields
    return Classification(ViT(transformer(scanned), image_size, **fields))


def m3ae(image_size, max_length):
    """Tables of patches and of words, in an encoder and in a decoder."""
    return MaskedVisionLanguage(
        M3AE(
            transformer(),
            transformer(),
            image_size,
            patch_size=2,
            channels=1,
            positions="learned",
            vocab_size=128,
            max_length=max_length,
        )
    )


def saved(folder, objective):
    """Random parameters, and the run that holds them."""
    rng = np.random.default_rng(0)
    shapes = abstract_variables(objective)[1]["params"]
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    save_model(folder, params)
    vocab_size = getattr(objective.model, "vocab_size", None)

    def source(*patterns):
        wanted = InitFrom(run=str(folder), parameters=patterns or ("**",))
        return Source(wanted, vocab_size, None, objective)

    return params, source


def planned(source, objective, mesh_config=None):
    mesh, rules = build(mesh_config)
    optimizer = AdamW(schedule=Constant(learning_rate=1e-3))
    plan = plan_state(objective, optimizer, mesh, rules, train_steps=3)
    vocab_size = getattr(objective.model, "vocab_size", None)
    return plan_copies([source], plan, vocab_size), mesh, rules


def started(source, objective, mesh_config=None):
    """The parameters that a run starts with, and the line about them."""
    (copy,), mesh, rules = planned(source, objective, mesh_config)
    state = random_state(objective, mesh, rules)
    with on_mesh(mesh, rules):
        return jax.device_get(start_from([copy], state).params), copy.describe()


def by_layer(params):
    """Parameters by path, those of scanned layers each by itself."""
    if "layers" in params["stack"]:
        params = params | {"stack": unstack_layers(params["stack"], LAYERS)}
    return traverse_util.flatten_dict(params, sep="/")


@pytest.mark.parametrize(
    ("scanned", "image_size", "grid", "mesh_config", "interpolation"),
    [
        ((True, True), 12, (6, 6), MeshConfig(data=1, fsdp=4, tensor=2), "bicubic"),
        ((True, False), (4, 10), (2, 5), None, "bilinear_antialiased"),
        ((False, True), 4, (2, 2), None, "bicubic"),
        ((False, False), 12, (6, 6), None, "bicubic"),
    ],
)
def test_a_vit_starts_from_images_of_another_size(
    tmp_path, scanned, image_size, grid, mesh_config, interpolation
):
    there, here = (
        vit(size, layers, interpolation=interpolation)
        for size, layers in zip((8, image_size), scanned)
    )
    params, source = saved(tmp_path, there)
    ours, line = started(source(), here, mesh_config)
    want = by_layer(params)
    table = want["patches/positions"]
    want["patches/positions"] = resize_positions(table, (4, 4), grid, 1, interpolation)
    got = by_layer(ours)
    assert got.keys() == want.keys()
    for name, value in want.items():
        tolerance = 1e-6 * (name == "patches/positions")
        np.testing.assert_allclose(got[name], value, tolerance, tolerance, err_msg=name)
    np.testing.assert_array_equal(got["patches/positions"][0], table[0])
    rows, columns = grid
    assert line.endswith(
        f"; **; patches/positions interpolated from 4 × 4 to {rows} × {columns} patches"
    )

    # Where the size did not change, it was already so at every call.
    shape = (3, 2 * rows, 2 * columns, 1)
    images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    logits = (
        jax.jit(objective.model.apply)({"params": tree}, images)["logits"]
        for objective, tree in ((there, params), (here, ours))
    )
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


def test_as_many_patches_in_another_grid_have_other_positions(tmp_path):
    params, source = saved(tmp_path, vit(8))
    ours, line = started(source(), vit((4, 16)))
    table = params["patches"]["positions"]
    assert ours["patches"]["positions"].shape == table.shape
    want = resize_positions(table, (4, 4), (2, 8), prefix=1)
    np.testing.assert_allclose(ours["patches"]["positions"], want, 1e-6, 1e-6)
    assert "from 4 × 4 to 2 × 8 patches" in line


def test_the_same_size_interpolates_nothing(tmp_path):
    params, source = saved(tmp_path, vit(8))
    ours, line = started(source(), vit(8))
    jax.tree.map(np.testing.assert_array_equal, ours, params)
    assert "interpolated" not in line


def test_both_tables_of_an_autoencoder_are_resized_and_its_words_are_not(tmp_path):
    params, source = saved(tmp_path, m3ae(8, 17))
    ours, line = started(source(), m3ae(12, 17))
    theirs, ours = (
        traverse_util.flatten_dict(tree, sep="/") for tree in (params, ours)
    )
    for name in ("vit/patches/positions", "decoder_positions"):
        want = resize_positions(theirs.pop(name), (4, 4), (6, 6), prefix=1)
        np.testing.assert_allclose(ours[name], want, 1e-6, 1e-6)
        assert f"{name} interpolated" in line
    assert line.count("interpolated") == 2
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("there", "here", "name"),
    [
        (
            MaskedLM(Bert(transformer(), 20, 17)),
            MaskedLM(Bert(transformer(), 20, 37)),
            "inputs/positions/table",
        ),
        # As many more words as there are patches more.
        (m3ae(8, 17), m3ae(12, 37), "decoder_word_positions"),
        (
            MaskedLM(Bert(transformer(), 20, 17)),
            vit(12),
            "inputs/positions/table -> patches/positions",
        ),
    ],
)
def test_positions_of_texts_are_refused(tmp_path, there, here, name):
    _, source = saved(tmp_path, there)
    with pytest.raises(UserError, match=r"shape \(17, 16\), .* here \(37, 16\)"):
        planned(source(name), here)


def test_other_tokens_before_the_patches_are_refused(tmp_path):
    _, source = saved(tmp_path, vit(8))
    here = vit(12, class_token=False, pooling="average")
    expected = "of 1 tokens before the patches, 'patches/positions' here of 0"
    with pytest.raises(UserError, match=expected) as info:
        planned(source("stack/**", "patches/positions"), here)
    assert str(info.value).startswith("init_from.parameters")


def test_patches_of_another_size_are_refused(tmp_path):
    _, source = saved(tmp_path, vit(8))
    with pytest.raises(UserError, match=r"'patches/kernel' .* shape \(2, 2, 1, 16\)"):
        planned(source(), vit(12, patch_size=3))


@pytest.mark.slow
def test_a_run_is_trained_on_at_another_size(tmp_path, capsys):
    def train(name, *bindings):
        run_dir = tmp_path / name
        code = main(
            ["train", str(TINY), "vit.patch_size=2", "transformer.num_layers=2",
             "train.eval_batches=1", *bindings, "--run_dir", str(run_dir)]
        )  # fmt: skip
        return code, *capsys.readouterr(), run_dir

    code, _, err, first = train("first", "train.steps=2")
    assert code == 0, err
    larger = [
        "experiment.init_from=(@init_from(),)", f"init_from.run={first}",
        "vit.image_size=12", "train.steps=1", "transformer.scan_layers=True",
    ]  # fmt: skip
    code, _, err, refused = train("refused", *larger)
    assert code == 2
    assert "gives images of 8 × 8 × 3; expected 12 × 12 × 3" in err
    assert not refused.exists()

    # So small a rate leaves the parameters where they started.
    small = ("cosine.learning_rate=1e-12", "cosine.warmup_steps=0")
    code, out, err, second = train("second", *larger, "images.size=12", *small)
    assert code == 0, err
    assert "patches/positions interpolated from 4 × 4 to 6 × 6 patches" in out
    theirs, ours = (by_layer(load(run).params) for run in (first, second))
    table = theirs.pop("patches/positions")
    theirs["patches/positions"] = resize_positions(table, (4, 4), (6, 6), prefix=1)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, 1e-5, 1e-6, err_msg=name)
