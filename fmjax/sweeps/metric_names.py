"""Names of the metrics that the validations of a run will have, without training it.

    python -m fmjax.sweeps.metric_names CONFIG NAME=VALUE …

prints them as JSON, or null where evaluations of the experiment may add others. In a
process of its own, since tracing starts JAX's backend, which belongs to the trials.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

# Evaluations, and the numbers that they add.
_NUMBERS = {
    "sample": (),
    "reconstructions": (),
    "unigram_baseline": ("unigram_nll", "unigram_bits_per_byte"),
}


def metric_names(
    config: str, bindings: Sequence[str], trust: bool = False
) -> list[str] | None:
    """The names, or None if they are not known before the run.

    Args:
      config: of the run.
      bindings: NAME=VALUE.
      trust: whether the config may import code.
    """
    words = [*(["--trust"] if trust else []), config, *bindings]
    done = subprocess.run(
        [sys.executable, "-m", "fmjax.sweeps.metric_names", *words],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    # Where a config fails, the first trial will say why.
    return json.loads(lines[-1]) if done.returncode == 0 and lines else None


def _names(config: str, bindings: Sequence[str], trust: bool) -> list[str] | None:
    import jax

    from fmjax.config.load import load_experiment
    from fmjax.sharding.mesh import MeshConfig, on_mesh
    from fmjax.training.labels import with_labels
    from fmjax.training.setup import plan_run
    from fmjax.training.vocab_size import with_vocab_size

    experiment = load_experiment(config, bindings, trust)
    experiment = with_labels(with_vocab_size(experiment))
    names = {"loss", "seconds", "epoch"}
    for evaluation in experiment.evaluations:
        if evaluation.gin_name not in _NUMBERS:
            return None
        names |= {*_NUMBERS[evaluation.gin_name]}
    objective, data = experiment.objective, experiment.data
    # The run's own may be for other devices than a CPU.
    mesh, rules = MeshConfig().build(), MeshConfig().all_rules
    shapes, dtypes = plan_run(experiment, mesh, rules).shapes, data.row_dtypes()
    rows = experiment.train.eval_batch_size or experiment.train.batch_size
    batch = {
        name: jax.ShapeDtypeStruct((rows, *shape), dtypes[name])
        for name, shape in data.row_shapes().items()
    }
    if data.tokenizer() is not None:
        # Rows of validation have it besides, where the targets are the text.
        batch["target_bytes"] = jax.ShapeDtypeStruct((rows,), "float32")
    variables = {"params": shapes.params, **shapes.extra}
    with on_mesh(mesh, rules):
        out = jax.eval_shape(lambda v, b: objective.loss(v, b, None), variables, batch)
    unit = objective.unit
    return sorted(names | {*out.terms, *out.metrics, unit, f"{unit}_seen"})


if __name__ == "__main__":
    given = sys.argv[1:]
    is_trusted = "--trust" in given
    first, *rest = [word for word in given if word != "--trust"]
    print(json.dumps(_names(first, rest, is_trusted)))
