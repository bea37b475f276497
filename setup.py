"""fmjax: foundation models from gin configs, in JAX and Flax."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent

setup(
    name="fmjax",
    version="0.1.0",
    description=__doc__,
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["fmjax", "fmjax.*"]), "fmjax.configs"],
    # The configs lie beside the package in the repository and inside it in a wheel.
    package_dir={"fmjax.configs": "configs"},
    package_data={"fmjax.configs": ["**/*.gin", "*.gin"]},
    entry_points={"console_scripts": ["fmjax = fmjax.cli.main:main"]},
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "grain>=0.2.18,<0.3",
        "seqio==0.0.20",
        # A pair: each TensorFlow Text is built against one TensorFlow.
        "tensorflow>=2.21,<2.22",
        "tensorflow-text>=2.21,<2.22",
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources",  # tensorflow-datasets imports it, undeclared
        "einops>=0.8",
        "protobuf<7",  # 7 rejects bools in Int64List, which seqio writes
        "sentencepiece>=0.2.1,<0.2.3",  # 0.2.3 needs protobuf 7
        "gin-config>=0.5,<0.6",
        "jaxtyping",
        "matplotlib>=3.8",
        "pillow>=11",
        "rich>=13",
        "safetensors>=0.5",
        "scikit-learn>=1.5",  # its digits are the images that are on every machine
        "simplejpeg>=1.8",
        "tensorboardX>=2.6",
        "tokenizers>=0.21",
        "typeguard>=4.4,<5",
        "xxhash>=3",
    ],
    extras_require={
        "gpu": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "beam": ["apache-beam"],
        "wandb": ["wandb"],
        "eval": ["sacrebleu>=2.4,<3"],
        "parity": ["torch", "transformers>=5,<6"],
        "notebooks": ["ipykernel", "nbclient", "nbformat", "jupyterlab", "pandas"],
        "test": [
            "hypothesis",
            "import-linter",
            "ipykernel",
            "nbclient",
            "nbformat",
            "pytest>=8",
            "pytest-xdist",
            "ruff==0.17.*",
            "sacrebleu>=2.4,<3",
            "tensorboard",
        ],
    },
)
