"""Scaling laws, and how hyperparameters transfer between sizes.

For notebooks:

    from fmjax import scaling

    fit = scaling.fit_law("hoffmann", scaling.read_points("runs.csv"), bootstrap=200)
    size, _ = scaling.size(fit, flops=scaling.chips("v5e-256").flops(hours=24))
"""

import importlib

_PUBLIC = {
    "read_points": "points",
    "fit_law": "fit",
    "fit_isoflop": "frontier",
    "fit_envelope": "frontier",
    "find_law": "law_files",
    "write_fit": "law_files",
    "chips": "sizing",
    "size": "sizing",
    "plot_fit": "plots",
    "plot_size": "plots",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    # On demand, as in fmjax itself.
    if name in _PUBLIC:
        module = importlib.import_module(f"fmjax.scaling.{_PUBLIC[name]}")
        return getattr(module, name)
    raise AttributeError(f"module 'fmjax.scaling' has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
