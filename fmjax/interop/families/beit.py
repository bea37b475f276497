"""BEiT (Bao et al. 2022)."""

from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Values, fixed, ignored, option
from fmjax.interop.families.vit import (
    FEED_FORWARD,
    NO_CLASSES,
    Classes,
    blocks,
    inputs,
    sizes,
)
from fmjax.interop.family import Architecture, Family
from fmjax.interop.options import Options
from fmjax.interop.rows import Row, linear, norm
from fmjax.models.layers.position_bias import RelativeGrid
from fmjax.models.vision.vit import ViT
from fmjax.objectives.classification import Classification

_LEARNED = "use_absolute_position_embeddings"
_OWN, _SHARED = "use_relative_position_bias", "use_shared_relative_position_bias"


class Positions:
    """Learned positions, and relative ones of each layer or of all."""

    fields = ("positions", "transformer.position_bias")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        learned, own, shared = (
            options.take(name, bool, False) for name in (_LEARNED, _OWN, _SHARED)
        )
        if own and shared:
            options.refuse(_SHARED, shared, f"False with {_OWN} = True")
        bias = RelativeGrid(per_layer=own) if own or shared else None
        return dict(zip(self.fields, ("learned" if learned else "none", bias)))

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        positions, bias = (values[field] for field in self.fields)
        if positions not in ("learned", "none"):
            raise UserError(f"positions = {positions!r}; expected 'learned' or 'none'.")
        if not isinstance(bias, RelativeGrid | None):
            raise UserError(
                f"transformer.position_bias = {bias!r}; expected @relative_grid()."
            )
        return {
            _LEARNED: positions == "learned",
            _OWN: bias is not None and bias.per_layer,
            _SHARED: bias is not None and not bias.per_layer,
        }


class LayerScale:
    """The initial value of the factors of layers' outputs; 0 for no factors."""

    fields = ("transformer.layer_scale",)

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        value = options.take("layer_scale_init_value", float, 0.1)
        return {self.fields[0]: value if value > 0 else None}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        return {"layer_scale_init_value": values[self.fields[0]] or 0.0}


class Pooling:
    """The class token, or the average of the patches, which then is normalized."""

    fields = ("pooling", "pooled_norm")

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        mean = options.take("use_mean_pooling", bool, True)
        return dict(zip(self.fields, ("average" if mean else "class_token", mean)))

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        pooling, normalized = (values[field] for field in self.fields)
        if (pooling, normalized) not in (("average", True), ("class_token", False)):
            raise UserError(
                f"pooling = {pooling!r} and pooled_norm = {normalized}; expected "
                "'average' and True, or 'class_token' and False."
            )
        return {"use_mean_pooling": normalized}


_LAYER, _BLOCK = "beit.encoder.layer.{layer}", "stack/layers"
_BIAS = "relative_position_bias.relative_position_bias_table"

BEIT = Family(
    model_type="beit",
    model=ViT,
    objective=Classification,
    entries=(
        *sizes("transformer", "transformer"),
        *FEED_FORWARD,
        Positions(),
        LayerScale(),
        Pooling(),
        option("use_mask_token", "mask_token", bool, False),
        # The rate grows with the layer here.
        option("drop_path_rate", "transformer.stochastic_depth", float, 0.1),
        fixed({"transformer.key_bias": False, "pooler": False}),
        # Options of heads that are not supported: masked patches, segmentation.
        ignored("vocab_size pool_scales use_auxiliary_head auxiliary_loss_weight"),
        ignored("auxiliary_channels auxiliary_num_convs auxiliary_concat_input"),
        ignored("semantic_loss_ignore_index add_fpn out_features out_indices"),
        ignored("reshape_hidden_states stage_names segmentation_indices"),
    ),
    rows=(
        *inputs("beit", "patches"),
        Row("patches/mask_token", "beit.embeddings.mask_token", "d -> 1 1 d"),
        Row("stack/relative_bias/table", f"beit.encoder.{_BIAS}"),
        Row(f"{_BLOCK}/relative_bias/table", f"{_LAYER}.attention.attention.{_BIAS}"),
        *blocks(_LAYER, "stack"),
        Row(f"{_BLOCK}/attention_scale", f"{_LAYER}.lambda_1"),
        Row(f"{_BLOCK}/mlp_scale", f"{_LAYER}.lambda_2"),
        *norm("stack/final_norm", "beit.layernorm"),
        *norm("pool_norm", "beit.pooler.layernorm"),
    ),
    architectures={
        "BeitForImageClassification": Architecture(
            (Classes(),), linear("classifier", "classifier")
        ),
        "BeitModel": Architecture((NO_CLASSES,), bare=True),
    },
    prefix="beit.",
    # Which row of the table belongs to a query and a key.
    constants=r"encoder\..*relative_position_bias\.relative_position_index",
)
