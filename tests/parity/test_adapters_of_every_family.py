"""LoRA of peft on all linear layers of every small model: both ways."""

import numpy as np
import pytest
import torch
from parity.adapter_cases import lora, random_adapter, text_arguments
from parity.decoders import DECODERS
from parity.encoder_decoders import ENCODER_DECODERS
from parity.encoders import ENCODERS
from parity.image_encoders import IMAGE_ENCODERS
from parity.images_and_texts import IMAGES_AND_TEXTS
from parity.models_of_transformers import VOCAB, close, imported, random_model, text
from parity.test_transformers_image_text import as_patches, pixels, texts
from safetensors.torch import load_file

import fmjax
from fmjax.errors import UserError
from fmjax.interop.peft.export_adapter import export_adapter
from fmjax.interop.peft.import_adapter import import_adapter

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

CASES = DECODERS | ENCODERS | ENCODER_DECODERS | IMAGE_ENCODERS | IMAGES_AND_TEXTS
# Linear layers of which adapters are refused, and what is said of them.
POOLING = {"head.attention.out_proj": "the output of torch's MultiheadAttention"}
REFUSED = {
    "siglip": POOLING,
    "siglip2": POOLING | {"patch_embedding": "is a convolution of patches"},
}
# Layers with fewer outputs than the rank, and theirs.
NARROW = {
    "dense_prediction": 1,
    "seq_relationship": 2,
    "shared_expert_gate": 1,
    "sop_classifier.classifier": 2,
}
# Outputs of transformers' classes, and their names here.
OUTPUTS = {
    "logits_per_image": ("logits",),
    "logits": ("logits", "class_logits", "next_sentence"),
    "cls_logits": ("class_logits",),
    "prediction_logits": ("logits",),
    "seq_relationship_logits": ("next_sentence",),
    "sop_logits": ("next_sentence",),
    "last_hidden_state": ("hidden",),
    "pooler_output": ("pooled",),
}


def inputs(name, model):
    """Arguments of their call and of ours, and a mask of the tokens that count."""
    if name in IMAGE_ENCODERS:
        options = IMAGE_ENCODERS[name].options
        size = options["image_size"]
        size = [size, size] if isinstance(size, int) else size
        images = np.random.default_rng(0).normal(
            size=(2, *size, options.get("num_channels", 3))
        )
        images = images.astype(np.float32)
        theirs = {"pixel_values": torch.tensor(images.transpose(0, 3, 1, 2))}
        if "mae" in name:  # They shuffle patches, masked or not.
            theirs["noise"] = torch.arange(9).tile(2, 1) / 9
        return theirs, {"images": images}, None
    if name in IMAGES_AND_TEXTS:
        options = CASES[name].options
        by_rank = options["text_config"]["eos_token_id"] == 2
        images = pixels(channels=options["vision_config"].get("num_channels", 3))
        tokens, mask = texts(VOCAB - 1 if by_rank else 5)
        theirs = {"pixel_values": torch.tensor(images.transpose(0, 3, 1, 2))}
        if model.config.model_type == "siglip2":
            theirs = as_patches(images, 7)
        theirs["input_ids"] = torch.tensor(tokens)
        ours = {"images": images, "tokens": tokens}
        if model.config.model_type == "clip":
            theirs["attention_mask"] = torch.tensor(mask).long()
            ours["padding_mask"] = mask
        return theirs, ours, None
    tokens, mask = text()
    padding = model.config.pad_token_id
    if padding is not None:
        # Positions count from padding, and classes of decoders are read before it.
        tokens = np.where(mask, np.maximum(tokens, 5), padding)
    if name not in ENCODER_DECODERS:
        return *text_arguments(tokens, mask), mask
    written = np.random.default_rng(3).integers(2, VOCAB, size=(4, 19))
    return *text_arguments(tokens, mask, written), None


@pytest.mark.parametrize("name", CASES)
def test_adapters_of_all_linear_layers_are_theirs(name, tmp_path):
    base = random_model(*CASES[name])
    imported(base, tmp_path)
    config = lora(
        target_modules="all-linear",
        exclude_modules=[*REFUSED.get(name, ())],
        rank_pattern=NARROW,
    )
    model = random_adapter(base, config)
    model.save_pretrained(tmp_path / "adapter")
    import_adapter(tmp_path / "adapter", tmp_path / "adapted", tmp_path / "run")
    theirs, ours, mask = inputs(name, model)
    with torch.no_grad():
        expected = model(**theirs)
        plain = random_model(*CASES[name])(**theirs)
    found = fmjax.load(tmp_path / "adapted")(**ours)
    compared = 0
    for key, names in OUTPUTS.items():
        here = next((each for each in names if each in found), None)
        if key not in expected or here is None:
            continue
        assert (expected[key] - plain[key]).abs().max() > 0.1
        by_token = mask is not None and expected[key].shape[:2] == mask.shape
        close(found[here], expected[key], mask if by_token else None)
        compared += 1
    assert compared
    export_adapter(tmp_path / "adapted", tmp_path / "out")
    before, after = (
        load_file(tmp_path / folder / "adapter_model.safetensors")
        for folder in ("adapter", "out")
    )
    if "other names" in name:
        return
    # A bare encoder-decoder is exported with its head, as whole models are.
    prefix = "base_model.model."
    longer = prefix + ("model." if before.keys() != after.keys() else "")
    before = {key.replace(prefix, longer, 1): x for key, x in before.items()}
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        torch.testing.assert_close(after[key], tensor, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "module"), [(name, module) for name in REFUSED for module in REFUSED[name]]
)
def test_what_peft_leaves_out_or_fmjax_cannot_is_refused(name, module, tmp_path):
    base = random_model(*CASES[name])
    imported(base, tmp_path)
    model = random_adapter(base, lora(target_modules=[module]))
    if module in POOLING:
        theirs, _, _ = inputs(name, model)
        with torch.no_grad():
            plain = random_model(*CASES[name])(**theirs).logits_per_image
            assert torch.equal(model(**theirs).logits_per_image, plain)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=REFUSED[name][module]):
        import_adapter(tmp_path / "adapter", tmp_path / "adapted", tmp_path / "run")
    assert not (tmp_path / "adapted").exists()
