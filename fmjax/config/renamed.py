"""Earlier names of configurables, fields and shipped configs.

Run directories of earlier versions still load (see `stored`). In any other file, and on
the command line, an old name is an error that gives the new one.
"""

CONFIGURABLES = {
    "image_view_contrast": "nt_xent",
    "text_tower": "text_encoder",
}

# (configurable by its new name, old field) → new field.
FIELDS = {
    ("data", "bad_share"): "max_corrupt_fraction",
    ("images", "bad_share"): "max_corrupt_fraction",
    ("gpt", "positions_from_mask"): "positions_from_padding_mask",
    ("digits", "validation_share"): "validation_fraction",
    ("image_folder", "validation_share"): "validation_fraction",
    ("python_stdlib", "validation_share"): "validation_fraction",
    ("prefix_lm", "least"): "min_fraction",
    ("prefix_lm", "most"): "max_fraction",
    ("masked_autoencoding", "mask_share"): "mask_ratio",
    ("masked_vision_language", "mask_share"): "mask_ratio",
    ("masked_vision_language", "word_mask_share"): "word_mask_ratio",
}

# (configurable by its new name, old field) → what to write instead, for changes that
# are more than a new name. `stored.TRANSLATIONS` makes these changes in stored configs.
REPLACED: dict[tuple[str, str], str] = {
    ("train", "sample_prompt"): (
        "sample.prompt, with @sample() among experiment.evaluations"
    ),
    ("train", "wandb_project"): (
        "wandb.project, with @wandb() among experiment.trackers"
    ),
    ("vit", "antialias"): "vit.interpolation = 'bicubic_antialiased' (or 'bicubic')",
    ("experiment", "imported_dtype"): (
        "imported.dtype, with experiment.imported = @imported()"
    ),
    ("transformer", "rope_theta"): (
        "rotary.theta, with transformer.rotary = @rotary() (or None for no rotation)"
    ),
    ("transformer", "num_experts"): (
        "experts.number, with transformer.experts = @experts() (or None for a single "
        "feed-forward layer)"
    ),
    ("transformer", "experts_per_token"): (
        "experts.per_token, with transformer.experts = @experts()"
    ),
    ("transformer", "expert_capacity"): (
        "experts.capacity, with transformer.experts = @experts()"
    ),
    ("transformer", "relative_buckets"): (
        "relative_buckets.number, with transformer.position_bias = "
        "@relative_buckets(), or disentangled.buckets, with @disentangled()"
    ),
    ("transformer", "relative_max_distance"): (
        "relative_buckets.max_distance, with transformer.position_bias = "
        "@relative_buckets(), or disentangled.max_distance, with @disentangled()"
    ),
}

# (configurable, field, old value) → gin text of today's value.
VALUES: dict[tuple[str, str, str], str] = {
    ("transformer", "position_bias", "none"): "None",
    ("transformer", "position_bias", "alibi"): "@alibi()",
    ("transformer", "position_bias", "buckets"): "@relative_buckets()",
    ("transformer", "position_bias", "disentangled"): "@disentangled()",
}

# Shipped files, without their ".gin".
CONFIGS = {
    "clip/cifar10": "small/clip_cifar10",
    "clip/digits": "small/clip_digits",
    "clip/lit_digits": "small/lit_digits",
    "coca/digits": "small/coca_digits",
    "m3ae/digits": "small/m3ae_digits",
    "mae/cifar10": "small/mae_cifar10",
    "simclr/cifar10": "small/simclr_cifar10",
    "vit/cifar10": "small/vit_cifar10",
    "vit/digits": "small/vit_digits",
}


def field_note(owner: str, field: str) -> str:
    """A sentence that gives the new name of an old field, or ''.

    Args:
      owner: the new name of the configurable.
      field: the old name of its field.
    """
    if new := FIELDS.get((owner, field)):
        return f"{owner}.{field} is now called {owner}.{new}."
    if instead := REPLACED.get((owner, field)):
        return f"{owner}.{field} is no longer a field: write {instead}."
    return ""


def value_note(owner: str, field: str, value: object) -> str:
    """A sentence on an old value of a field, or ''."""
    new = VALUES.get((owner, field, value)) if isinstance(value, str) else None
    name = f"{owner}.{field}"
    return f"{name} = {value!r} is now written {name} = {new}." if new else ""


def config_note(name: str) -> str:
    """A sentence that gives the new name of a shipped config, or ''."""
    new = CONFIGS.get(name.removesuffix(".gin"))
    return f"{name!r} is now called {new + '.gin'!r}." if new else ""
