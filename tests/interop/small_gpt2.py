"""A small GPT-2 in a folder, written without transformers."""

import json

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "model_type": "gpt2",
    "n_layer": 2,
    "n_embd": 6,
    "n_head": 2,
    "n_positions": 8,
    "vocab_size": 11,
}
_LAYER = {
    "ln_1.weight": (6,),
    "ln_1.bias": (6,),
    "ln_2.weight": (6,),
    "ln_2.bias": (6,),
    "attn.c_attn.weight": (6, 18),
    "attn.c_attn.bias": (18,),
    "attn.c_proj.weight": (6, 6),
    "attn.c_proj.bias": (6,),
    "mlp.c_fc.weight": (6, 24),
    "mlp.c_fc.bias": (24,),
    "mlp.c_proj.weight": (24, 6),
    "mlp.c_proj.bias": (6,),
}
SHAPES = {
    "wte.weight": (11, 6),
    "wpe.weight": (8, 6),
    "ln_f.weight": (6,),
    "ln_f.bias": (6,),
} | {f"h.{i}.{name}": shape for i in range(2) for name, shape in _LAYER.items()}


def random_tensors(rows=11):
    """Tensors by name; with so many rows in the table."""
    rng = np.random.default_rng(0)
    shapes = SHAPES | {"wte.weight": (max(rows, 11), 6)}
    made = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return made | {"wte.weight": made["wte.weight"][:rows]}


def write(folder, tensors, config=CONFIG):
    """Writes config.json and model.safetensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
