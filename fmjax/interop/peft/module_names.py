"""Names of modules in transformers, where files of whole models have others.

An adapter is saved under the names of the model in memory. Version 5 of transformers
renamed the modules of some families and writes and reads files of whole models with the
old names; adapters of version 4 have the old names too.
"""

import re

from fmjax.interop.rows import Row
from fmjax.interop.weights import Place

_VISION = (
    (r"encoder\.layer\.", "layers."),
    (r"attention\.attention\.(query|key|value)", r"attention.\1"),
    (r"attention\.query", "attention.q_proj"),
    (r"attention\.key", "attention.k_proj"),
    (r"attention\.value", "attention.v_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)
_DINOV2 = (*_VISION[1:6], (r"mlp\.weights_out\.", "mlp.down_proj."))
_GATED = "mlp.weights_in", ("mlp.gate_proj", "mlp.up_proj")
# Module of files that is several in memory, and those, by model_type.
_APART = dict.fromkeys(("dinov2", "dinov2_with_registers"), _GATED)
# (pattern, replacement) by model_type, applied in order to the names of files.
_RENAMED: dict[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(("vit", "vit_msn", "deit", "beit", "vit_mae"), _VISION),
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _DINOV2),
    "dinov3_vit": ((r"^layer\.", "model.layer."),),
    "mixtral": ((r"\.block_sparse_moe\.", ".mlp."),),
    "gpt_neox": ((r"^embed_out\.", "lm_head."),),
    "clip_text_model": ((r"^text_model\.", ""),),
    "clip_vision_model": ((r"^vision_model\.", ""),),
}


def in_memory(model_type: str, name: str) -> str:
    """The name of a tensor in the model, by its name in files of whole models."""
    for pattern, replacement in _RENAMED.get(model_type, ()):
        name = re.sub(pattern, replacement, name)
    return name


def apart(model_type: str, place: Place) -> list[Place]:
    """The tensors in the model of a tensor of files of whole models."""
    joined, modules = _APART.get(model_type, ("", ()))
    if not joined or joined not in place.name or not isinstance(place.row, Row):
        return [place]
    # "two i o -> (two o) i": parts are stacked, and lie one after the other.
    pattern = place.row.pattern.replace("two ", "")
    return [
        place._replace(
            row=place.row._replace(
                path=path, name=place.row.name.replace(joined, module), pattern=pattern
            ),
            name=place.name.replace(joined, module),
            shapes=(shape,),
        )
        for path, module, shape in zip(place.row.paths, modules, place.shapes)
    ]
