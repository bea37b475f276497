"""Small models of each family of image encoders; names with a comma are variants."""

from parity.case import Case

VISION = dict(
    hidden_size=30,
    num_hidden_layers=3,
    num_attention_heads=5,
    intermediate_size=44,
    image_size=21,
    patch_size=7,
)
CLASSES = {"num_labels": 11}
DINO = {k: v for k, v in VISION.items() if k != "intermediate_size"}
MAE_SIZES = VISION | dict(
    hidden_size=40,
    decoder_hidden_size=24,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=3,
    decoder_intermediate_size=28,
)
BEIT = VISION | {"use_relative_position_bias": True}
DINOV3 = VISION | {"hidden_size": 40, "num_register_tokens": 2}
IMAGE_ENCODERS = {
    "vit": Case("ViTForImageClassification", VISION | CLASSES),
    "vit, no offsets": Case(
        "ViTForImageClassification",
        VISION | CLASSES | {"qkv_bias": False, "hidden_act": "gelu_new"},
    ),
    "vit, not square": Case(
        "ViTForImageClassification",
        VISION | CLASSES | {"image_size": [15, 28], "patch_size": [5, 7]},
    ),
    "vit, bare": Case("ViTModel", VISION | {"num_channels": 2}),
    "vit_msn": Case("ViTMSNForImageClassification", VISION | CLASSES, alike=True),
    "vit_msn, bare": Case("ViTMSNModel", VISION),
    "deit": Case("DeiTForImageClassificationWithTeacher", VISION | CLASSES, alike=True),
    "deit, one head": Case("DeiTForImageClassification", VISION | CLASSES),
    "deit, bare": Case("DeiTModel", VISION),
    "dinov2": Case("Dinov2ForImageClassification", DINO | CLASSES),
    "dinov2, gated": Case(
        "Dinov2Model",
        DINO | {"use_swiglu_ffn": True, "mlp_ratio": 3, "layerscale_value": 0.5},
    ),
    "dinov2, no mask": Case("Dinov2Model", DINO | {"use_mask_token": False}),
    "dinov2_with_registers": Case(
        "Dinov2WithRegistersForImageClassification", DINO | CLASSES, alike=True
    ),
    "dinov2_with_registers, gated": Case(
        "Dinov2WithRegistersModel",
        DINO | {"use_swiglu_ffn": True, "num_register_tokens": 2},
    ),
    "dinov3_vit": Case("DINOv3ViTModel", DINOV3),
    "dinov3_vit, gated, all biases, not square": Case(
        "DINOv3ViTModel",
        DINOV3
        | {"use_gated_mlp": True, "hidden_act": "silu", "key_bias": True}
        | {"image_size": [15, 28], "patch_size": [5, 7]},
    ),
    "beit": Case("BeitForImageClassification", BEIT | CLASSES),
    "beit, shared, masked, class token": Case(
        "BeitModel",
        VISION
        | {
            "use_shared_relative_position_bias": True,
            "use_mask_token": True,
            "use_mean_pooling": False,
        },
    ),
    "beit, absolute, no scale": Case(
        "BeitModel",
        VISION
        | {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0},
    ),
    "vit_mae, encoder": Case("ViTMAEModel", MAE_SIZES | {"mask_ratio": 0.0}),
}
