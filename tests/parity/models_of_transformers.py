"""Small random models of `transformers`, and what they compute."""

import json

import numpy as np
import torch
import transformers
from parity.decoders import ENDS, LENGTH, LLAMA, VOCAB  # noqa: F401

from fmjax.interop.export import export_model
from fmjax.interop.hugging_face import import_model

torch.set_num_threads(2)

# Grouped products of experts need widths of multiples of four.
PLAIN = dict(attn_implementation="eager", experts_implementation="eager")


# Largest |a - b| / max(1, max|b|) of all comparisons by model_type; see conftest.py.
DIFFERENCES: dict[str, float] = {}
_compared = ["none"]


def random_model(architecture, options, spread=0.15):
    """A model whose every weight and buffer, norms and offsets too, is random."""
    torch.manual_seed(0)
    cls = getattr(transformers, architecture)
    _compared[0] = cls.config_class.model_type
    model = with_noise(cls(cls.config_class(**PLAIN | options)).eval(), spread)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("final_logits_bias", "e_score_correction_bias")):
                buffer.add_(torch.randn_like(buffer))
    return model


def with_noise(model, spread):
    """The model, with random numbers added to what is trained in it."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(spread * torch.randn_like(weight))
    return model


def imported(model, folder, **saving):
    """The folder of a run that a model was imported into."""
    model.save_pretrained(folder / "hf", **saving)
    import_model(folder / "hf", folder / "run")
    return folder / "run"


def text(seed=0, length=LENGTH, left=False):
    """Tokens of several rows and a mask, padded on one side."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCAB, size=(4, length))
    real = np.array([[length], [17], [1], [9]])
    mask = np.arange(length) < real
    return tokens, mask[:, ::-1].copy() if left else mask


def close(ours, theirs, where=None):
    """Asserts |a - b| ≤ 1e-4 · max(1, max|b|), where a mask says so."""
    ours, theirs = np.asarray(ours), theirs.detach().float().numpy()
    assert ours.shape == theirs.shape
    if where is not None:
        ours, theirs = ours[where], theirs[where]
    found = float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))
    DIFFERENCES[_compared[0]] = max(found, DIFFERENCES.get(_compared[0], 0.0))
    assert found <= 1e-4


def all_close(ours, theirs, where=None):
    """The same for hidden states of all layers."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        close(a, b, where)


def edit_config(folder, **changes):
    """Changes options of a saved config.json; None takes one away."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    file.write_text(json.dumps(config))


def comes_back(theirs, run, folder, **exporting):
    """Asserts that what was imported is exported with equal bits, whole and no more."""
    model_type = theirs.config.model_type
    export_model(run, folder, **exporting)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == model_type
    cls = getattr(transformers, config["architectures"][0])
    how = PLAIN | {"attn_implementation": theirs.config._attn_implementation}
    again, info = cls.from_pretrained(folder, output_loading_info=True, **how)
    assert not any(info.values()), info
    before, after = theirs.state_dict(), again.state_dict()
    # A bare model's tensors have the prefix of one with a head.
    prefix = f"{again.base_model_prefix}." if type(again) is not type(theirs) else ""
    for name, tensor in before.items():
        name = name if name in after else prefix + name
        assert torch.equal(tensor, after[name]), name
    return again
