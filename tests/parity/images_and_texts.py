"""Small models of each family of images and texts; names with a comma are variants."""

from parity.case import Case
from parity.decoders import VOCAB
from parity.image_encoders import VISION

LENGTH = 19
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=36,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=52,
    max_position_embeddings=LENGTH + 2,
    eos_token_id=5,
)
CLIP = dict(text_config=TEXT, vision_config=VISION, projection_dim=22)
SIGLIP = dict(text_config=TEXT | {"projection_size": 30}, vision_config=VISION)
SIGLIP_2 = {key: value for key, value in VISION.items() if key != "image_size"}
IMAGES_AND_TEXTS = {
    "clip": Case("CLIPModel", CLIP),
    "clip, end of text by rank": Case(
        "CLIPModel",
        CLIP
        | {
            "text_config": TEXT | {"eos_token_id": 2, "hidden_act": "gelu"},
            "vision_config": VISION | {"layer_norm_eps": 1e-3, "num_channels": 2},
        },
    ),
    "siglip": Case("SiglipModel", SIGLIP, alike=True),
    "siglip2": Case(
        "Siglip2Model",
        SIGLIP | {"vision_config": SIGLIP_2 | {"num_patches": 9}},
        alike=True,
    ),
}
