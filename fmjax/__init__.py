"""fmjax: foundation models from gin configs, in JAX and Flax.

For notebooks:

    experiment = fmjax.load_experiment("quickstart.gin", ["train.steps=50"])
    fmjax.train(experiment, "runs/a")
    run = fmjax.load("runs/a")
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Experiment": ("fmjax.training.experiment", "Experiment"),
    "load_experiment": ("fmjax.config.load", "load_experiment"),
    "train": ("fmjax.run.train", "train"),
    "fork": ("fmjax.run.fork", "fork"),
    "evaluate": ("fmjax.evaluation.validation", "evaluate_run"),
    "load": ("fmjax.inference.load", "load"),
    "beam_search": ("fmjax.inference.generate", "beam_search"),
    "generate": ("fmjax.inference.generate", "generate"),
    "chat": ("fmjax.inference.chat", "chat"),
    "Chat": ("fmjax.inference.chat", "Chat"),
    "ChatOptions": ("fmjax.inference.chat", "ChatOptions"),
    "runs": ("fmjax.evaluation.frames", "runs"),
    "compare": ("fmjax.evaluation.compare", "compare"),
    "curves": ("fmjax.evaluation.compare", "curves"),
    "plan": ("fmjax.planning.apart", "plan"),
    "shardings": ("fmjax.planning.shardings", "shardings"),
    "parameter_factors": ("fmjax.training.parametrize", "parameter_factors"),
    "coordinate_check": ("fmjax.scaling.coordinate_check", "coordinate_check"),
    "profile": ("fmjax.evaluation.profile", "profile"),
    "sweep": ("fmjax.sweeps.sweep_result", "sweep"),
    "Uniform": ("fmjax.sweeps.space", "Uniform"),
    "LogUniform": ("fmjax.sweeps.space", "LogUniform"),
    "Integers": ("fmjax.sweeps.space", "Integers"),
    "Asha": ("fmjax.sweeps.config", "Asha"),
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    # On demand, so that `import fmjax` takes no time and no JAX backend.
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'fmjax' has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
