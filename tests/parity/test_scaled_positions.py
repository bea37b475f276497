"""Scalings of rotary positions in every family that has them, against transformers."""

import numpy as np
import pytest
import torch
from parity.decoders import DECODERS, LENGTH
from parity.encoders import ENCODERS
from parity.models_of_transformers import (
    close,
    comes_back,
    imported,
    random_model,
    text,
)
from tiers import slow

import fmjax
from fmjax.interop.families import FAMILIES
from fmjax.interop.families.rope import Rope, RopeByWindow

# Length of pretraining, which the text goes beyond.
SHORT = 8
SCALINGS = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "yarn, all told": {
        "factor": 16.0,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        "attention_factor": 1.3,
    },
    "longrope": {"factor": 4.0},
}
# Scalings of a family that refuses the others.
ALONE = {"phi3": ("longrope",)}
ROTARY = {
    family.model_type: entry
    for family in FAMILIES
    for entry in family.entries
    if isinstance(entry, Rope)
}
MODELS = {name: case for name, case in (DECODERS | ENCODERS).items() if name in ROTARY}
# Layers with a window have positions of their own.
BY_WINDOW = {n for n, entry in ROTARY.items() if isinstance(entry, RopeByWindow)}
QUICK = {("llama", name) for name in SCALINGS} | {("modernbert", "yarn")}


def scaled(name, scaling):
    """A model of a family, and one with the same weights without the scaling."""
    architecture, options = MODELS[name]
    given = options.get("rope_parameters", {})
    plain = {"rope_type": "default", "rope_theta": 500.0}
    if "partial_rotary_factor" in given:
        plain["partial_rotary_factor"] = given["partial_rotary_factor"]
    kind = scaling.split(",")[0]
    other = plain | {"rope_type": kind} | SCALINGS[scaling]
    sizes = {"max_position_embeddings": SHORT if kind == "dynamic" else LENGTH}
    if name == "mixtral":  # Its class scales no positions without a head_dim.
        sizes["head_dim"] = 6
    if "all told" in scaling and name not in BY_WINDOW:
        other["truncate"] = False
    if kind in ("llama3", "yarn", "longrope"):
        other["original_max_position_embeddings"] = SHORT

    def made(full, local):
        if name in BY_WINDOW:
            full = {"full_attention": full, "sliding_attention": local}
        return random_model(architecture, options | sizes | {"rope_parameters": full})

    if kind == "longrope":
        unscaled = made(plain, plain)
        pairs = next(
            len(x) for at, x in unscaled.named_buffers() if at.endswith("inv_freq")
        )
        other["short_factor"] = np.linspace(1, 1.5, pairs).tolist()
        other["long_factor"] = np.linspace(1, 9, pairs).tolist()
    # Another base and factor in layers with a window, so that none takes the other's.
    mine = {"rope_theta": 50.0, "factor": SCALINGS[scaling]["factor"] / 2}
    local = other | mine
    return made(other, local), [made(plain, local), made(other, plain)]


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        case if case in QUICK else slow(*case)
        for case in (
            (name, scaling) for name in MODELS for scaling in ALONE.get(name, SCALINGS)
        )
    ],
)
def test_models_with_scaled_positions_are_theirs(name, scaling, tmp_path):
    theirs, others = scaled(name, scaling)
    run = imported(theirs, tmp_path)
    again = comes_back(theirs, run, tmp_path / "back")
    config = run / "config.gin"
    config.write_text(
        config.read_text().replace(f"max_length = {SHORT}", f"max_length = {LENGTH}")
    )
    tokens, mask = text()
    read = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(mask).long(),
    }
    with torch.no_grad():
        expected = theirs(**read).logits
        close(again.eval()(**read).logits, expected, mask)
        for other in others[: 2 if name in BY_WINDOW else 1]:
            assert (other(**read).logits - expected)[mask].abs().max() > 1e-2
    out = fmjax.load(run)(tokens=tokens, padding_mask=mask)
    close(out["logits"], expected, mask)
