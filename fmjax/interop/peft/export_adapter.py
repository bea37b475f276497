"""Export of a run of adapters as the files of peft."""

import functools
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from fmjax.errors import UserError
from fmjax.interop.peft import virtual_tokens
from fmjax.interop.peft.adapter_config import FILE, IA3, LN_TUNING, LORA
from fmjax.interop.peft.adapter_tensors import (
    PREFIX,
    SAFETENSORS,
    SHORT_PREFIX,
    VIRTUAL_TOKENS,
)
from fmjax.interop.peft.base_model import BIAS, WEIGHT, BaseModel, module_of
from fmjax.interop.peft.gather import Gathered, Product
from fmjax.interop.peft.module_lists import saved_modules, shortened
from fmjax.interop.safetensors_writer import Tensor, check_dtype, write_file
from fmjax.interop.weights import Place
from fmjax.models.untie import HEAD, TABLE, head_of
from fmjax.optim.peft.added import Method
from fmjax.optim.peft.lora import LoRA
from fmjax.run import directory as run_dirs
from fmjax.sharding.mesh import MeshConfig
from fmjax.storage.new_folder import new_folder
from fmjax.storage.paths import as_path
from fmjax.training.checkpoint.read_model import find_model
from fmjax.training.experiment import Experiment
from fmjax.training.state import abstract_variables

# peft's names of the tasks of transformers' classes, and the modules that it saves
# whole for them.
_TASKS = {
    "ForCausalLM": ("CAUSAL_LM", ()),
    "LMHeadModel": ("CAUSAL_LM", ()),
    "ForConditionalGeneration": ("SEQ_2_SEQ_LM", ()),
    "ForSequenceClassification": ("SEQ_CLS", ("classifier", "score")),
    "ForTokenClassification": ("TOKEN_CLS", ("classifier", "score")),
    "ForQuestionAnswering": ("QUESTION_ANS", ("qa_outputs",)),
}


def export_adapter(
    run_dir: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    step: int | None = None,
    dtype: str | None = None,
    base_model: str | None = None,
    trust: bool = False,
) -> list[str]:
    """Writes adapter_config.json and adapter_model.safetensors of a run of adapters.

    A run without adapters that trains norms (`peft.trained`) is of LayerNorm tuning.

    Names are those of transformers' models from version 5 on. Adapters of several
    parameters that a tensor there joins become one of their summed rank.

    Args:
      run_dir: a run directory with adapters or trained norms, from `fmjax train` or
        `fmjax import`.
      folder: the folder to write; it must be new.
      step: of the checkpoint; the newest if None.
      dtype: of the tensors: float32, float16 or bfloat16; None for float32.
      base_model: name or folder of the base in transformers, which peft's Auto classes
        load; None for none.
      trust: whether the run's config may import Python modules.

    Returns:
      Lines for the user.

    Raises:
      UserError: it is no run of adapters, or peft has no form for what it trains.
        Nothing is written then.
    """
    dtype = dtype or "float32"
    check_dtype(dtype)
    source = as_path(run_dir)
    experiment = run_dirs.stored_experiment(source, trust)
    made = _Exported(source, experiment, step)
    config = made.config | {"base_model_name_or_path": base_model}
    with new_folder(folder) as target:
        tensors = [
            Tensor(name, array.shape, lambda array=array: array)
            for name, array in sorted(made.tensors.items())
        ]
        write_file(target / SAFETENSORS, tensors, dtype)
        text = json.dumps(config, indent=2, sort_keys=True)
        (target / FILE).write_text(text + "\n", encoding="utf-8")
    about = f"{config['peft_type']} of {made.class_name}, {len(tensors)} tensors"
    whole = config["modules_to_save"]
    return [
        f"{about} in {dtype}",
        *([f"whole: {', '.join(whole)}"] if whole else []),
        *made.notes,
    ]


class _Exported:
    """The files of a run of adapters.

    Attributes:
      class_name: transformers' class of the base.
      tensors: by name.
      config: of adapter_config.json, without the base's name.
      notes: for the user.
    """

    def __init__(self, run_dir: pathlib.Path, experiment: Experiment, step: int | None):
        peft, objective = experiment.peft, experiment.objective
        if peft is None:
            raise _no_adapters(run_dir)
        imported = experiment.imported
        preferred = imported.model_type if imported else None
        self._base, self._run_dir = BaseModel.of(objective, preferred), run_dir
        self.class_name = self._base.class_name
        mesh = MeshConfig().build(jax.local_devices(backend="cpu")[:1])
        rules = MeshConfig().all_rules
        found = find_model(run_dir, objective, mesh, rules, step, peft=peft)
        self._saved, wanted, _ = found
        axes, shapes = abstract_variables(objective)
        plan = peft.plan(axes["params"], shapes["params"])
        self._trained = {*plan.base_shapes} - {*plan.frozen}
        arrays = {path: wanted[path] for path in plan.added}
        self.tensors: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self._prefix, self._adapted = PREFIX, set()
        self._tuned: set[str] = set()
        virtual = [m for m in peft.methods if isinstance(m, virtual_tokens.METHODS)]
        if not peft.methods:
            options = self._tuned_norms()
        elif not virtual:
            options = self._changes_of_weights(wanted, [*arrays], experiment)
        elif len(peft.methods) == 1:
            options = self._virtual_tokens(virtual[0], arrays)
        else:
            raise UserError(
                f"{run_dir} has virtual tokens beside other adapters (peft.methods), "
                "for which peft has no single file."
            )
        task, heads = _task_of(self.class_name)
        if saved_modules(heads, self._modules)[1] & self._adapted:
            task, heads = None, ()  # With a task peft saves its head whole.
        if virtual and task is None:
            task = "FEATURE_EXTRACTION"  # Without a task peft adds no virtual tokens.
        bias, whole = self._add_whole(heads)
        if options["peft_type"] == LORA:
            options["bias"] = bias
        elif bias != "none":
            raise UserError(
                f"{run_dir} trains biases beside {options['peft_type']} "
                "(peft.trained), for which peft has no form."
            )
        self.config: dict[str, Any] = options | {
            "task_type": task,
            "inference_mode": True,
            "modules_to_save": whole or None,
        }

    @functools.cached_property
    def _modules(self) -> set[str]:
        """All modules with weights or biases."""
        return {module_of(name) for name in self._base.places} - {""}

    def _changes_of_weights(
        self,
        wanted: dict[str, jax.ShapeDtypeStruct],
        added: list[str],
        experiment: Experiment,
    ) -> dict[str, Any]:
        """Adds the tensors of LoRA or IA3; the options of their config."""
        gathered = Gathered(self._base, self._saved, wanted, added, self._run_dir)
        products, factors = gathered.products, gathered.factors
        if bool(products) == bool(factors):
            found = "adapters of LoRA and of IA3" if products else "adapters of zeros"
            raise UserError(
                f"{self._run_dir} has {found}, for which peft has no single file."
            )
        for product in products.values():
            self._add_product(product)
        for module, array in factors.items():
            self.tensors[f"{PREFIX}{module}.ia3_l"] = array
        self._adapted = {product.key for product in products.values()} | {*factors}
        if factors:
            return self._ia3_config(factors, gathered.transposed)
        return self._lora_config(products, experiment)

    def _tuned_norms(self) -> dict[str, Any]:
        """Finds the norms that are trained; the options of their config."""
        self._tuned = {
            module_of(name)
            for name, place in self._base.places.items()
            if name.endswith(WEIGHT) and self._is_norm(place) and self._trains(place)
        }
        if not self._tuned:
            raise _no_adapters(self._run_dir)
        self._adapted = self._tuned
        return {
            "peft_type": LN_TUNING,
            "target_modules": shortened(self._tuned, self._modules),
        }

    def _is_norm(self, place: Place) -> bool:
        return all(path.rpartition("/")[0].endswith("norm") for path in place.row.paths)

    def _trains(self, place: Place) -> bool:
        arrays = {self._base.stored(path, place)[0] for path in place.row.paths}
        return not arrays.isdisjoint(self._trained)

    def _virtual_tokens(
        self, method: Method, arrays: dict[str, jax.ShapeDtypeStruct]
    ) -> dict[str, Any]:
        """Adds the tensor of a prefix or a prompt; the options of its config."""
        kind = virtual_tokens.kind_of(method)
        virtual_tokens.check_base(kind, self._base, str(self._run_dir))
        self.notes += virtual_tokens.notes(kind, self._base)
        added = self._saved.read_params(arrays)
        rows, options = virtual_tokens.to_file(method, added, self._base)
        self.tensors[VIRTUAL_TOKENS], self._prefix = rows, SHORT_PREFIX
        return options

    def _add_product(self, product: Product) -> None:
        key, whole = f"{PREFIX}{product.key}", product.whole
        if product.is_table:
            self.tensors[f"{key}.lora_embedding_A"] = whole.a
            self.tensors[f"{key}.lora_embedding_B"] = whole.b
        else:
            self.tensors[f"{key}.lora_A.weight"] = whole.a
            self.tensors[f"{key}.lora_B.weight"] = whole.b
        if product.magnitude is not None:
            self.tensors[f"{key}.lora_magnitude_vector"] = product.magnitude

    def _lora_config(
        self, products: dict[str, Product], experiment: Experiment
    ) -> dict[str, Any]:
        methods = [m for m in experiment.peft.methods if isinstance(m, LoRA)]
        doras = {product.magnitude is not None for product in products.values()}
        stabilized = {method.rank_stabilized for method in methods}
        if len(doras) > 1:
            raise UserError(
                f"{self._run_dir} has adapters with and without lora.dora, but peft's "
                "use_dora is one for all."
            )
        power = 0.5 if stabilized == {True} else 1.0
        experts = {
            name: product.whole.a.shape[0] // self._experts_of(name)
            for name, product in products.items()
        }
        alphas = {
            name: _rounded(product.whole.scale * experts[name] ** power)
            for name, product in products.items()
        }
        rank, alpha = _most(experts.values()), _most(alphas.values())
        dropouts = {method.dropout for method in methods}
        parameters = [n for n, product in products.items() if product.is_parameter]
        modules = {n for n, product in products.items() if not product.is_parameter}
        return {
            "peft_type": LORA,
            "r": rank,
            "lora_alpha": alpha,
            "use_rslora": stabilized == {True},
            "use_dora": doras == {True},
            # peft has no dropout beside parameters without modules.
            "lora_dropout": 0.0 if parameters else max(dropouts),
            "rank_pattern": {n: r for n, r in experts.items() if r != rank},
            "alpha_pattern": {n: a for n, a in alphas.items() if a != alpha},
            "target_modules": shortened(modules, self._modules) or None,
            "target_parameters": parameters or None,
            "fan_in_fan_out": any(
                product.inputs_first and not product.is_table
                for product in products.values()
            ),
            "init_lora_weights": True,
            "layers_to_transform": None,
        }

    def _experts_of(self, name: str) -> int:
        """The number of experts of a parameter; 1 for what is of one matrix."""
        parts = self._base.experts.get(name.rpartition(".")[0])
        return len(parts["out"]) if parts else 1

    def _ia3_config(
        self, factors: dict[str, np.ndarray], transposed: bool
    ) -> dict[str, Any]:
        inner = {module for module, array in factors.items() if len(array) == 1}
        first = shortened(inner, self._modules)
        rest = shortened({*factors} - inner, self._modules)
        if any(m.endswith(n) for m in factors.keys() - inner for n in first):
            first = sorted(inner)
        return {
            "peft_type": IA3,
            "target_modules": [*first, *rest],
            "feedforward_modules": first,
            "fan_in_fan_out": transposed,
            "init_ia3_weights": True,
        }

    def _add_whole(self, heads: Iterable[str]) -> tuple[str, list[str]]:
        """Adds trained tensors; the option "bias", and names of modules."""
        places = self._base.places
        self._drop_head_of_base()
        names = {
            name
            for name, place in places.items()
            if self._trains(place) and module_of(name) not in self._tuned
        }
        modules = {module_of(name) for name in names if name.endswith(WEIGHT)}
        biases = {name for name in names if name.endswith(BIAS)}
        for name in names - biases:
            if not name.endswith(WEIGHT):
                raise UserError(
                    f"{self._run_dir} trains {name} (peft.trained), which is no weight "
                    "or bias of a module, so that peft has no form for it."
                )
        rest = {name for name in biases if module_of(name) not in modules}
        every = {name for name in places if name.endswith(BIAS)}
        beside = {f"{module}{BIAS}" for module in self._adapted} & every
        option = "none"
        if rest and biases == every:
            option = "all"
        elif rest and rest == beside:
            option = "lora_only"
        elif rest:
            modules |= {module_of(name) for name in rest}
            rest = set()
        listed, kept = saved_modules([*heads, *sorted(modules)], self._modules)
        if both := sorted(kept & self._adapted):
            raise UserError(
                f"{self._run_dir} trains {both[0]} (peft.trained) beside its adapter, "
                "for which peft has no form but for the biases of all layers, or of "
                "all that have adapters."
            )
        in_run = self._base.tensors(self._saved)
        for name in places:
            module = module_of(name)
            if module in self._tuned:
                key = f"{self._prefix}{module}.ln_tuning_layers"
                self.tensors[key + name.removeprefix(module)] = in_run[name].make()
            elif module in kept:
                self.tensors[self._prefix + name] = in_run[name].make()
            elif name in rest:
                inner = ".base_layer" if module in self._adapted else ""
                name_there = f"{self._prefix}{module}{inner}{BIAS}"
                self.tensors[name_there] = in_run[name].make()
        return option, listed

    def _drop_head_of_base(self) -> None:
        """Leaves out a head that has only got the base's tied weights."""
        tables = [base for base in self._saved.bases if TABLE in base.param_shapes]
        if HEAD not in self._trained or not tables or HEAD in tables[0].param_shapes:
            return
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        table = self._base.shapes[TABLE].update(sharding=host)
        head = self._base.shapes[HEAD].update(sharding=host)
        found = self._saved.read_params({HEAD: head})[HEAD]
        if np.array_equal(found, head_of(tables[0].read_params({TABLE: table})[TABLE])):
            self._trained.discard(HEAD)


def _no_adapters(run_dir: pathlib.Path) -> UserError:
    return UserError(
        f"{run_dir} has no adapters (peft.methods), and no norms that are trained "
        "alone (peft.trained). Expected a run of @lora(), @ia3(), @prefix(), "
        "@prompt(), @p_tuning() or peft/layer_norm.gin; without --adapter, whole "
        "weights are exported."
    )


def _task_of(class_name: str) -> tuple[str | None, tuple[str, ...]]:
    for end, found in _TASKS.items():
        if class_name.endswith(end) and "Image" not in class_name:
            return found
    return None, ()


def _rounded(value: float) -> float:
    """The number without the rounding of float32."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short


def _most(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]
