"""Vision models at the sizes of their papers, counted."""

import jax
import pytest
import torch
import transformers

from fmjax.config import files as config_files
from fmjax.config.load import load_experiment
from fmjax.training.state import abstract_variables


def of_transformers(architecture, **options):
    """How many weights a model of transformers has, fixed tables left out."""
    cls = getattr(transformers, architecture)
    with torch.device("meta"):
        model = cls(cls.config_class(**options))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def vit(layers, width, heads, patch=16, mlp=None):
    return of_transformers(
        "ViTForImageClassification",
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width if mlp is None else mlp,
        patch_size=patch,
        num_labels=1000,
    )


def clip_l14():
    wide = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    wider = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16)
    wider |= dict(num_hidden_layers=24, patch_size=14)
    return of_transformers(
        "CLIPModel", text_config=wide, vision_config=wider, projection_dim=768
    )


def coca_parts(image_layers, text_layers, width, image_mlp, text_mlp):
    """Of CoCa's image tower, its decoder, and all else."""
    D, V, E = width, 64000, width
    norm, attention = 2 * D, 4 * (D * D + D)

    def mlp(hidden):
        return 2 * D * hidden + hidden + D

    image = 18 * 18 * 3 * D + D + 16 * 16 * D + norm
    image += image_layers * (attention + mlp(image_mlp) + 2 * norm)
    # Both tables, positions of a start and 64 tokens, and [CLS].
    text = 2 * V * D + 65 * D + D + 2 * norm
    text += text_layers * (attention + mlp(text_mlp) + 2 * norm)
    text += text_layers * (2 * attention + mlp(text_mlp) + 3 * norm)
    # Queries and poolers, projections, scale.
    rest = (256 + 1) * D + 2 * (attention + norm) + 2 * D * E + 1
    return image, text, rest


COCA = {
    "coca_base": coca_parts(12, 12, 768, 3072, 3072),
    "coca_large": coca_parts(24, 12, 1024, 4096, 4096),
    "coca_2b": coca_parts(40, 18, 1408, 6144, 5632),
}


def dinov2_b14_registers():
    return of_transformers(
        "Dinov2WithRegistersForImageClassification",
        image_size=518,
        patch_size=14,
        num_labels=1000,
    )


def dinov3(layers, width, heads, mlp, **more):
    """With a classifier of the class token."""
    encoder = of_transformers(
        "DINOv3ViTModel",
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=mlp,
        num_register_tokens=4,
        **more,
    )
    return encoder + (width + 1) * 1000


def beit(layers, width, heads):
    return of_transformers(
        "BeitForImageClassification",
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        use_relative_position_bias=True,
        num_labels=1000,
    )


def plain():
    """Without a class token and learned positions."""
    return vit(12, 384, 6) - 384 - 197 * 384


COUNTS = {
    "vit_ti16": lambda: vit(12, 192, 3),
    "vit_s16": lambda: vit(12, 384, 6),
    "vit_s16_plain": plain,
    "vit_b32": lambda: vit(12, 768, 12, 32),
    "vit_b16": lambda: vit(12, 768, 12),
    "vit_l16": lambda: vit(24, 1024, 16),
    "vit_h14": lambda: vit(32, 1280, 16, 14),
    "vit_g14": lambda: vit(40, 1408, 16, 14, 6144),
    # Sizes are that configuration's defaults.
    "mae_b16": lambda: of_transformers("ViTMAEForPreTraining"),
    "clip_b32": lambda: of_transformers("CLIPModel"),
    "clip_b16": lambda: of_transformers("CLIPModel", vision_config={"patch_size": 16}),
    "clip_l14": clip_l14,
    "siglip_b16": lambda: of_transformers("SiglipModel"),
    "siglip2_b16": lambda: of_transformers(
        "SiglipModel", text_config={"vocab_size": 256000}
    ),
    "dinov2_b14_registers": dinov2_b14_registers,
    "dinov3_s16": lambda: dinov3(12, 384, 6, 1536),
    "dinov3_b16": lambda: dinov3(12, 768, 12, 3072),
    "dinov3_7b16": lambda: dinov3(
        *(40, 4096, 32, 8192), use_gated_mlp=True, query_bias=False, value_bias=False
    ),
    "vit_msn_b16": lambda: of_transformers(
        "ViTMSNForImageClassification", num_labels=1000
    ),
    "beit_b16": lambda: beit(12, 768, 12),
    "beit_l16": lambda: beit(24, 1024, 16),
    **{name: lambda parts=parts: sum(parts) for name, parts in COCA.items()},
}
# In millions, as the papers have it.
PAPERS = {"vit_ti16": 5.7, "vit_s16": 22, "vit_b16": 86, "vit_l16": 307, "vit_h14": 632}


def small_data_with(name, folder):
    """A model of this size on digits, with captions where it reads texts."""
    texts = name.startswith(("clip", "coca", "siglip"))
    data = "digits_captions" if texts else "digits"
    files = ["quickstart.gin", f"data/{data}.gin", f"models/{name}.gin"]
    (folder / "run.gin").write_text("".join(f"include '{f}'\n" for f in files))
    return load_experiment(folder / "run.gin")


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name, tmp_path):
    experiment = small_data_with(name, tmp_path)
    axes, shapes = abstract_variables(experiment.objective)
    del axes
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == COUNTS[name]()
    header = (config_files.configs_folder() / "models" / f"{name}.gin").read_text()
    assert f"{count:,} parameters" in header.replace("\n# ", " ")
    experiment.optimizer.schedule.build(experiment.train.steps)
    if name in PAPERS:
        assert abs(count / 1e6 - PAPERS[name]) < 0.015 * PAPERS[name]


# Table 1 of CoCa's paper, in millions: image tower, decoder, both.
COCA_PAPER = {
    "coca_base": (86, 297, 383),
    "coca_large": (303, 484, 787),
    "coca_2b": (1000, 1100, 2100),
}


@pytest.mark.parametrize("name", COCA)
def test_cocas_halves_are_the_papers(name, tmp_path):
    _, shapes = abstract_variables(small_data_with(name, tmp_path).objective)
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(shapes["params"][part]))
        for part in ("image", "text")
    ]
    assert tuple(counts) == COCA[name][:2]
    # The paper counts neither poolers nor projections.
    for count, paper in zip((*counts, sum(counts)), COCA_PAPER[name]):
        if paper < 1000:
            assert abs(count / 1e6 - paper) < 0.01 * paper
        else:
            # Billions are cut to a decimal.
            assert count // 10**8 * 100 == paper


@pytest.mark.parametrize("name", COUNTS)
def test_each_model_takes_the_rows_that_come_with_it(name, tmp_path):
    experiment = small_data_with(name, tmp_path)
    experiment.objective.check(experiment.data.row_shapes(), None)
