"""Names that configurables and their fields had in earlier versions.

Run directories written then still load; in anybody else's file, or on the command line,
an old name is refused with the new one.
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
}

# Shipped files.
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
