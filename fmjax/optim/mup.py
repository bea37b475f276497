"""µP and CompleteP: hyperparameters that stay the best as models get wider and deeper.

Yang et al. 2022 (arXiv:2203.03466), the Adam column of table 8; Dey et al. 2025
(arXiv:2505.01618), table 1. Hyperparameters are those of a small base model. Of the
sizes of every parameter beside the base's (`fmjax.optim.base_shape`) follow factors of
its initial values, learning rate, weight decay and epsilon, and of the stacks' sizes
the multipliers of the forward pass. With m the ratio of a weight's inputs, and m_L that
of the layers, for Adam:

| parameter | initial values | rate | forward |
|---|---|---|---|
| tables, biases, norms: inputs that do not scale | 1 | 1 | |
| hidden weights: inputs and outputs that scale | m^-1/2 | 1/m | |
| kernel of a language head | 1 | 1 | logits / m, tied or not |
| other outputs: inputs that scale, outputs that do not | 1/m | 1/m | |

The last row is the head's parametrization with its multiplier moved into the weight:
for an optimizer whose updates do not depend on the gradients' scale both are the same
(Yang et al., lemma J.1), and it needs no multiplier in each module. Attention scores
get the factor √(d_base / d), which is 1/d with d the width of a head, and as it was for
the base. CompleteP multiplies the output of layers by m_L^-α, the rates of all
parameters in blocks by m_L^(α-1), and Adam's epsilon by 1/m, in blocks by m_L^-α too,
and initializes weights that write to the residual stream as all others.
"""

import dataclasses
import math
import re
from fractions import Fraction
from typing import Any

import jax
from flax import linen as nn
from flax import traverse_util

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.field_types import gin_name
from fmjax.models.contracts import PredictsTokens
from fmjax.models.layers.multipliers import Multipliers
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.parts import parts_of, replace_parts
from fmjax.models.resize import first_stack, resized
from fmjax.optim.base_shape import Sizes
from fmjax.optim.optimizers import AdamW, Lion, Muon, Optimizer
from fmjax.optim.scaling import Scaling


@configurable("mup")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MuP:
    """Maximal update parametrization (Yang et al. 2022, arXiv:2203.03466).

    Learning rates, initial values and multipliers follow from a base model, at whose
    sizes they are those of the config. The base is either the model with all stacks at
    `base_width`, or `base`.

    For AdamW and Lion the rules are those of MuAdam in microsoft's mup. For Muon,
    hidden matrices follow the spectral condition (Yang et al. 2023, arXiv:2310.17813),
    by which the spectral norm of an update is √(outputs / inputs), and others AdamW's.
    Other optimizers are refused.

    Attributes:
      base_width: transformer.embed_dim of the model's first stack in the base. All
        widths of all stacks are in this ratio, with heads of the same width.
      base_head_dim: width of the heads in the base; None for the model's, which wider
        models have more of.
      base: the base model, such as @base/gpt() with base/transformer.embed_dim = 256,
        in place of base_width.
      embedding_multiplier: α_in, of the input of the first block.
      logits_multiplier: α_out, of the logits of the language head.
      scale_weight_decay: whether weight decay is multiplied by what the learning rate
        is divided by for the width, so that their product stays (mup's MuAdam;
        CompleteP); False leaves it (EleutherAI's nanoGPT-mup).
    """

    base_width: int | None = None
    base_head_dim: int | None = None
    base: nn.Module | None = None
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    scale_weight_decay: bool = True

    def __post_init__(self):
        """Raises UserError for values out of bounds, or that have no effect."""
        one = (self.base is None) != (self.base_width is None)
        require(self, "base_width", one, f"it or {self.gin_name}.base, not both")
        for field in ("base_width", "base_head_dim"):
            value = getattr(self, field)
            require(self, field, value is None or value >= 1, "at least 1, or None")
        alone = self.base is None or self.base_head_dim is None
        expected = f"None with {self.gin_name}.base, which has a width of its own"
        require(self, "base_head_dim", alone, expected)
        for field in ("embedding_multiplier", "logits_multiplier"):
            require(self, field, getattr(self, field) > 0, "a number above 0")

    def base_of(self, model: nn.Module) -> nn.Module:
        """The base model, without multipliers.

        Args:
          model: of the run.

        Raises:
          UserError: it is another kind of model, or the model's sizes do not divide.
        """
        base = self.base
        if base is None:
            width = Fraction(self.base_width, first_stack(model).embed_dim)
            base = resized(
                model,
                width=width,
                depth=self._depth(model),
                head_dim=self.base_head_dim,
                asked=self._asked,
            )
        elif type(base) is not type(model):
            raise UserError(
                f"{self.gin_name}.base = @{gin_name(base)}(): expected a smaller "
                f"@{model.gin_name}(), the model of the run."
            )
        return replace_parts(
            base,
            TransformerConfig,
            lambda _, c: dataclasses.replace(c, multipliers=Multipliers()),
        )

    @property
    def binding(self) -> str:
        """The field that names the base, for messages."""
        return f"{self.gin_name}.{'base_width' if self.base is None else 'base'}"

    @property
    def _asked(self) -> str:
        """The fields that resize the model, with their values, for messages."""
        return f"{self.gin_name}.base_width = {self.base_width}"

    def with_multipliers(self, model: nn.Module, base: nn.Module, sizes: Any):
        """The model with the multipliers of each stack.

        Args:
          model: of the run; it may have them already.
          base: from `base_of`.
          sizes: a `Sizes` per parameter.

        Raises:
          UserError: the config binds other multipliers; a field has no effect or no
            known rule.
        """
        of_base = parts_of(base, TransformerConfig)
        self._check_embedding(model, sizes)
        logits, tokens = self._of_vocabulary(model, sizes)

        def change(path: str, c: TransformerConfig) -> TransformerConfig:
            wanted = Multipliers(
                tokens=tokens,
                embedding=self.embedding_multiplier,
                attention=self._of_attention(c, of_base[path]),
                residual=self._of_residual(c, of_base[path]),
                logits=logits,
            )
            if c.multipliers not in (Multipliers(), wanted):
                raise UserError(
                    f"{model.gin_name}.{path}: transformer.multipliers is bound, but "
                    f"experiment.parametrization = @{self.gin_name}() sets it; "
                    "expected one of the two."
                )
            return self._stack(dataclasses.replace(c, multipliers=wanted))

        return replace_parts(model, TransformerConfig, change)

    def scaling(self, sizes: Any, optimizer: Optimizer) -> Any:
        """A `Scaling` per parameter.

        Args:
          sizes: a `Sizes` per parameter.
          optimizer: of the run.

        Raises:
          UserError: no rule is known for the optimizer, or for another depth.
        """
        if not isinstance(optimizer, AdamW | Lion | Muon):
            raise UserError(
                f"experiment.optimizer = @{optimizer.gin_name}() with "
                f"experiment.parametrization = @{self.gin_name}(): no rule is known "
                "for its learning rates; expected @adamw(), @lion() or @muon()."
            )
        if not self.scale_weight_decay and optimizer.weight_decay == 0:
            raise UserError(
                f"{self.gin_name}.scale_weight_decay = False has no effect with "
                f"{optimizer.gin_name}.weight_decay = 0; expected True."
            )
        return jax.tree.map(lambda leaf: self._of_parameter(leaf, optimizer), sizes)

    def _of_parameter(self, sizes: Sizes, optimizer: Optimizer) -> Scaling:
        m = sizes.m_in
        init = rate = 1.0
        if m != 1.0 and not sizes.is_head:
            init, rate = (1 / m if sizes.is_output else m**-0.5), 1 / m
        if isinstance(optimizer, Muon) and sizes.is_hidden_matrix:
            rate = _spectral(sizes)
        decay = 1 / rate if self.scale_weight_decay else 1.0
        return Scaling(init, rate, decay)

    def _of_vocabulary(self, model: nn.Module, sizes: Any) -> tuple[float, float]:
        """The multipliers of logits and of token vectors."""
        leaves = jax.tree.leaves(sizes)
        heads = {s.m_in for s in leaves if s.is_head}
        tables = {s.m_out for s in leaves if s.names == ("vocab", "embed")}
        if not heads and isinstance(model, PredictsTokens):
            heads = tables
        if len(heads) > 1 or len(tables) > 1:
            raise UserError(
                f"{self.binding}: the vocabulary's tables of @{model.gin_name}() grow "
                "in different ratios; expected one."
            )
        if not heads and self.logits_multiplier != 1.0:
            raise UserError(
                f"{self.gin_name}.logits_multiplier = {self.logits_multiplier} has no "
                f"effect: @{model.gin_name}() has no language head; expected 1.0."
            )
        (m,) = heads or {1.0}
        (growth,) = tables or {1.0}
        # Factors of √D in a model are those of the base too.
        scaled = m**0.5 if getattr(model, "head_scale", False) else 1.0
        tokens = growth**-0.5 if getattr(model, "embed_scale", False) else 1.0
        return self.logits_multiplier * scaled / m, tokens

    def _check_embedding(self, model: nn.Module, sizes: Any) -> None:
        paths = traverse_util.flatten_dict(sizes, sep="/")
        norms = r"(^|.*/)(\w*inputs/norm|input_norm)/scale"
        normalized = any(re.fullmatch(norms, path) for path in paths)
        if normalized and self.embedding_multiplier != 1.0:
            raise UserError(
                f"{self.gin_name}.embedding_multiplier = {self.embedding_multiplier} "
                f"has no effect: @{model.gin_name}() normalizes its embeddings; "
                "expected 1.0."
            )

    def _of_attention(self, c: TransformerConfig, base: TransformerConfig) -> float:
        ratio = base.head_width / c.head_width
        if ratio != 1.0 and c.attention_scale is not None:
            raise UserError(
                f"transformer.attention_scale = {c.attention_scale} is the same for "
                f"heads of {base.head_width} features in the base and of "
                f"{c.head_width} in the model; expected None, or heads of one width."
            )
        return ratio**0.5

    def _depth(self, model: nn.Module) -> Fraction:
        return Fraction(1)

    def _of_residual(self, c: TransformerConfig, base: TransformerConfig) -> float:
        if c.num_layers != base.num_layers:
            raise UserError(
                f"{self.binding}: transformer.num_layers is {base.num_layers} in the "
                f"base, {c.num_layers} in the model; expected the same, or "
                "@completep()."
            )
        return 1.0

    def _stack(self, c: TransformerConfig) -> TransformerConfig:
        return c


@configurable("completep")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CompleteP(MuP):
    """CompleteP: µP for models of another depth too (arXiv:2505.01618, table 1).

    For models whose layers normalize their input.

    Attributes:
      base_depth: transformer.num_layers of the model's first stack in the base, with
        base_width; all stacks are in this ratio.
      alpha: exponent α of the depth, 0.5 to 1: the output of a layer is multiplied by
        m_L^-α. The paper recommends 1.
    """

    base_depth: int | None = None
    alpha: float = 1.0

    def __post_init__(self):
        """Raises UserError for values out of bounds, or that have no effect."""
        super().__post_init__()
        given = (self.base is None) == (self.base_depth is not None)
        require(self, "base_depth", given, "a number with base_width, None with a base")
        depth = self.base_depth
        require(self, "base_depth", depth is None or depth >= 1, "at least 1")
        require(self, "alpha", 0.5 <= self.alpha <= 1, "0.5 ≤ x ≤ 1")

    def _of_parameter(self, sizes: Sizes, optimizer: Optimizer) -> Scaling:
        scaling = super()._of_parameter(sizes, optimizer)
        # Gradients of what is before the logits have the factor 1/m of the head.
        m = sizes.m_out if sizes.m_in == 1.0 else sizes.m_in
        epsilon = 1.0 if sizes.is_output and not sizes.is_head else 1 / m
        layers = sizes.m_layers
        epsilon *= layers**-self.alpha
        if isinstance(optimizer, Muon) and sizes.is_hidden_matrix:
            epsilon = 1.0  # Its updates have none.
        rate = scaling.rate * layers ** (self.alpha - 1)
        return dataclasses.replace(scaling, rate=rate, epsilon=epsilon)

    @property
    def _asked(self) -> str:
        return f"{super()._asked}, base_depth = {self.base_depth}"

    def _depth(self, model: nn.Module) -> Fraction:
        return Fraction(self.base_depth or 1, first_stack(model).num_layers)

    def _of_residual(self, c: TransformerConfig, base: TransformerConfig) -> float:
        fits = c.norm_position != "post"
        require(c, "norm_position", fits, "'pre' or 'sandwich' with @completep()")
        if c.share_layers and c.num_layers != base.num_layers:
            raise UserError(
                f"{self.binding}: transformer.share_layers = True with {c.num_layers} "
                f"layers, {base.num_layers} in the base. No rule is known for weights "
                "whose gradients add up over layers; expected the same number."
            )
        return (c.num_layers / base.num_layers) ** -self.alpha

    def _stack(self, c: TransformerConfig) -> TransformerConfig:
        return dataclasses.replace(c, init_by_depth=False)


def _spectral(sizes: Sizes) -> float:
    """The factor of Muon's rate: its updates have the spectral norm ∝ √max(in, out)."""

    def wanted(i: int) -> float:
        fan_in, fan_out = sizes.fan_in[i], sizes.fan_out[i]
        return math.sqrt(fan_out / fan_in) / math.sqrt(max(fan_in, fan_out))

    return wanted(0) / wanted(1)
