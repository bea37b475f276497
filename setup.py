"""Where fmjax's packages lie; all other metadata is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fmjax", "fmjax.*"]), "fmjax.configs"],
    # The configs lie beside the package in the repository and inside it in a wheel.
    package_dir={"fmjax.configs": "configs"},
    package_data={
        "fmjax.configs": ["**/*.gin", "*.gin"],
        "fmjax.evaluation": ["templates/*.html"],
        "fmjax.interop": ["templates/*.md"],
        "fmjax.planning": ["gpu_targets/*.textproto"],
        "fmjax.launch": ["templates/*"],
    },
)
