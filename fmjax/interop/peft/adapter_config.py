"""adapter_config.json of peft: what an adapter changes, and by how much."""

import dataclasses
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from fmjax.errors import UserError, suggest
from fmjax.interop.options import Options

FILE = "adapter_config.json"
LORA, IA3, LN_TUNING = "LORA", "IA3", "LN_TUNING"
PREFIX_TUNING, PROMPT_TUNING, P_TUNING = "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"
VIRTUAL_TOKENS = (PREFIX_TUNING, PROMPT_TUNING, P_TUNING)
_KINDS = (LORA, IA3, LN_TUNING, *VIRTUAL_TOKENS)
ALL_LINEAR = "all-linear"

# Names, notes, and settings of training or of another initialization.
_HARMLESS = """
    auto_mapping base_model_name_or_path corda_config eva_config inference_mode
    init_ia3_weights init_lora_weights lora_ga_config loftq_config megatron_core
    peft_version qalora_group_size revision runtime_config task_type velora_config
""".split()  # noqa: SIM905
# Initializations that subtract the adapter from the weights of the base.
_OF_CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
_NOTHING = (None, False, {}, [], "")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The options of an adapter that change what a model computes.

    Attributes:
      source: the file, for messages.
      base: name or path of the model that it was trained on, "" if it is not told.
      kind: `LORA`, `IA3`, `LN_TUNING` or one of `VIRTUAL_TOKENS`.
      rank: columns of A, where `ranks` has no pattern.
      alpha: numerator of the scale, where `alphas` has no pattern.
      rank_stabilized: whether the scale is alpha / sqrt(rank).
      dora: whether there are magnitudes.
      dropout: share of the inputs of A that are dropped in training.
      ranks: regular expression of the end of a module's name → rank.
      alphas: the same → alpha.
      targets: names or a regular expression of the modules, `ALL_LINEAR`, or None if
        they are not told.
      without: names or a regular expression of modules that are no targets.
      layers: numbers of the layers that are adapted; None for all.
      layers_of: names of the lists of layers that `layers` counts in; any if empty.
      parameters: names of parameters that are adapted without a module of their own.
      whole: names of modules that are saved whole.
      length: number of virtual tokens.
      copies: for how many stacks there are virtual tokens, two of an encoder-decoder.
    """

    source: str
    kind: str
    base: str = ""
    rank: int = 8
    alpha: float = 8
    rank_stabilized: bool = False
    dora: bool = False
    dropout: float = 0.0
    ranks: dict[str, int] = dataclasses.field(default_factory=dict)
    alphas: dict[str, float] = dataclasses.field(default_factory=dict)
    targets: tuple[str, ...] | str | None = None
    without: tuple[str, ...] | str = ()
    layers: tuple[int, ...] | None = None
    layers_of: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    length: int = 0
    copies: int = 1

    @classmethod
    def read(cls, folder: Path, ignore: Collection[str] = ()) -> "AdapterConfig":
        """Reads the file of a folder.

        Args:
          folder: with the file.
          ignore: names of options to ignore.

        Raises:
          UserError: there is no such file, or it has an option that is not supported.
        """
        file = folder / FILE
        if not file.is_file():
            raise UserError(f"{folder}: no {FILE}; expected an adapter saved by peft.")
        options = Options.read(file, ignore)
        kind = options.take("peft_type", str, "")
        if kind not in _KINDS:
            options.refuse("peft_type", kind, f"one of {', '.join(_KINDS)}")
        # peft writes null for a model that was made from a config.
        base = options.peek("base_model_name_or_path", None)
        common = {
            "source": str(file),
            "base": base if isinstance(base, str) else "",
            "kind": kind,
            "targets": _names_or_pattern(options, "target_modules"),
            "without": _names_or_pattern(options, "exclude_modules") or (),
            "whole": _names(options, "modules_to_save"),
        }
        # Whether weights are [inputs, outputs] follows from the model.
        options.ignore("fan_in_fan_out", *_HARMLESS)
        if kind == IA3:
            # Whether inputs or outputs are multiplied follows from the shapes.
            options.ignore("feedforward_modules")
            found = cls(**common)
        elif kind == LN_TUNING:
            found = cls(**common)  # It has no options of its own.
        elif kind in VIRTUAL_TOKENS:
            found = cls(**common, **_of_virtual_tokens(options))
        else:
            found = cls(**common, **_of_lora(options))
        _finish(options)
        return found

    def rank_of(self, module: str) -> int:
        """The rank of a module's adapter, by the module's name in the file."""
        return self.ranks.get(_pattern_of(self.ranks, module), self.rank)

    def alpha_of(self, module: str) -> float:
        """The numerator of the scale of a module's adapter."""
        return self.alphas.get(_pattern_of(self.alphas, module), self.alpha)

    def scale(self, alpha: float, rank: int) -> float:
        """What A B is multiplied by."""
        return alpha / (rank**0.5 if self.rank_stabilized else rank)

    def is_target(self, module: str) -> bool | None:
        """Whether peft adapts a module; None if only peft's model can tell.

        As peft's `check_target_module_exists`.
        """
        if self.targets is None or self.targets == ALL_LINEAR:
            return None
        if _matches(self.without, module) or any(
            re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.whole
        ):
            return False
        if not _matches(self.targets, module):
            return False
        if self.layers is None or isinstance(self.targets, str):
            return True
        lists = self.layers_of or (r"[^.]*",)
        for name in lists:
            # The first number of the name, which is not that of an expert.
            found = re.match(rf"(?:.*?\.|){name}\.(\d+)\.", module)
            if found is not None:
                return int(found[1]) in self.layers
        return False

    def targets_parameter(self, name: str) -> bool:
        """Whether a parameter without a module of its own is adapted, by its name."""
        return any(
            name == each or name.endswith(f".{each}") for each in self.parameters
        )


def _of_lora(options: Options) -> dict[str, Any]:
    base = options.peek("init_lora_weights", True)
    if isinstance(base, str) and base.lower().startswith(_OF_CHANGED_BASES):
        options.refuse(
            "init_lora_weights",
            base,
            "an adapter of the unchanged base, as peft's save_pretrained writes it "
            "with path_initial_model_for_weight_conversion",
        )
    # "all" and "lora_only" are seen from the tensors.
    options.require("bias", "none", "all", "lora_only")
    layers = options.peek("layers_to_transform", None)
    options.ignore("layers_to_transform")
    if isinstance(layers, int) and not isinstance(layers, bool):
        layers = [layers]
    if layers is not None and not _are(layers, int):
        options.refuse("layers_to_transform", layers, "numbers of layers")
    return {
        "rank": options.take("r", int, 8),
        "alpha": options.take("lora_alpha", float, 8),
        "rank_stabilized": options.take("use_rslora", bool, False),
        "dora": options.take("use_dora", bool, False),
        "dropout": options.take("lora_dropout", float, 0.0),
        "ranks": _by_pattern(options, "rank_pattern", int),
        "alphas": _by_pattern(options, "alpha_pattern", float),
        "layers": tuple(layers) if layers else None,
        "layers_of": _names(options, "layers_pattern"),
        "parameters": _names(options, "target_parameters"),
    }


def _of_virtual_tokens(options: Options) -> dict[str, Any]:
    # Sizes follow from the base, and what trained the tensor is not in the file.
    options.ignore(
        *("token_dim", "num_attention_heads", "num_layers", "init_weights"),
        *("prefix_projection", "encoder_hidden_size", "encoder_num_layers"),
        *("encoder_dropout", "encoder_reparameterization_type", "prompt_tuning_init"),
        *("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    )
    length = options.take("num_virtual_tokens", int, 0)
    if length < 1:
        options.refuse("num_virtual_tokens", length, "at least 1")
    copies = options.peek("num_transformer_submodules", None)
    options.ignore("num_transformer_submodules")
    if copies not in (None, 1, 2):
        options.refuse("num_transformer_submodules", copies, "1 or 2")
    return {"length": length, "copies": copies or 1}


def _names(options: Options, name: str) -> tuple[str, ...]:
    value = options.peek(name, None)
    options.ignore(name)
    value = [value] if isinstance(value, str) and value else value or []
    if not _are(value, str):
        options.refuse(name, value, "names")
    return tuple(value)


def _names_or_pattern(options: Options, name: str) -> tuple[str, ...] | str | None:
    value = options.peek(name, None)
    if not isinstance(value, str):
        return _names(options, name) or None
    options.ignore(name)
    if value.lower() == ALL_LINEAR:
        return ALL_LINEAR
    _check_pattern(options, name, value)
    return value


def _by_pattern(options: Options, name: str, kind: type) -> dict[str, Any]:
    values = options.take(name, dict, None) or {}
    inside = Options(values, f"{name} of adapter_config.json")
    for pattern in values:
        _check_pattern(options, name, pattern)
    return {pattern: inside.take(pattern, kind, None) for pattern in values}


def _check_pattern(options: Options, name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error:
        options.refuse(name, pattern, "a regular expression")


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, kind) and not isinstance(value, bool) for value in values
    )


def _finish(options: Options) -> None:
    """Raises a UserError for an option that was not taken and has a value."""
    for name, value in options.left().items():
        if not any(value == each for each in _NOTHING):
            options.refuse(
                name,
                value,
                "no such option. If you know that it has no effect, import with "
                f"--ignore {name}",
            )


def _matches(wanted: tuple[str, ...] | str, module: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in wanted)


def _pattern_of(patterns: Iterable[str], module: str) -> str:
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), "")


def check_ignored(folder: Path, ignore: Collection[str]) -> None:
    """Raises a UserError for an option to ignore that the file does not have."""
    known = json.loads((folder / FILE).read_bytes())
    for name in ignore:
        if name not in known:
            raise UserError(
                f"--ignore {name}: {folder / FILE} has no such option."
                f"{suggest(name, known)}"
            )
