"""A run that starts from another and freezes what it took, by the command line."""

import shutil

import jax
import numpy as np
import pytest

from fmjax.inference.load import load

COMMON = [
    "transformer.num_layers=2",
    "train.eval_batches=1",
    "train.eval_batch_size=64",
    "adamw.schedule=@inverse_square_root()",
    "inverse_square_root.learning_rate=0.01",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny):
    """A run of two steps, of scanned layers."""
    from fmjax.cli.main import main

    run_dir = tmp_path_factory.mktemp("source") / "run"
    changes = ["transformer.scan_layers=True", "train.steps=2"]
    assert main(["train", *tiny, *COMMON, *changes, "--run_dir", str(run_dir)]) == 0
    return run_dir


def command(tiny, source, run_dir, steps):
    return [
        "train", *tiny, *COMMON, "--run_dir", run_dir, f"train.steps={steps}",
        "transformer.scan_layers=False",
        "experiment.init_from=(@init_from(),)",
        f"init_from.run={source}",
        "init_from.parameters=('stack/**', 'tokens/*')",
        "experiment.freeze=(@freeze(),)",
        "freeze.paths=('stack/layers/**',)",
        "freeze.until=3",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_starts_from_another_and_continues_without_it(
    tiny, source, tmp_path, verb
):
    code, out, err = verb(*command(tiny, source, tmp_path / "whole", 5))
    assert code == 0, err
    assert "frozen until step 3" in out
    assert f"starting from {source} (step 2)" in out

    gone = tmp_path / "gone"
    shutil.copytree(source, gone)
    assert verb(*command(tiny, gone, tmp_path / "parts", 2))[0] == 0
    shutil.rmtree(gone)
    taken, now = load(source).params["stack"], load(tmp_path / "parts").params["stack"]
    for i in range(2):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_array_equal(a[i], b),
            taken["layers"],
            now[f"layer_{i}"],
        )
    code, out, err = verb(*command(tiny, gone, tmp_path / "parts", 5))
    assert code == 0, err
    assert "resuming from step 2" in out
    assert "starting from" not in out
    whole, parts = load(tmp_path / "whole").params, load(tmp_path / "parts").params
    jax.tree.map(np.testing.assert_array_equal, whole, parts)

    code, _, err = verb(*command(tiny, source, tmp_path / "parts", 5))
    assert code == 2
    assert "init_from.run" in err
    code, _, err = verb(*command(tiny, gone, tmp_path / "parts", 5), "freeze.until=4")
    assert code == 2
    assert "freeze.until: 3 → 4" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("init_from.run=nowhere", "nowhere: no such directory"),
        ("init_from.step=7", "no checkpoint of step 7"),
        ("init_from.parameters=('stak/**',)", "Did you mean 'stack/**'"),
        ("freeze.paths=('tokns/**',)", "Did you mean 'tokens/**'"),
        ("gpt.vocab_size=300", "vocab_size = 259, this run 300"),
        ("bytes.sentinels=1", "this run's "),
    ],
)
def test_what_does_not_fit_leaves_nothing_behind(
    tiny, source, tmp_path, verb, change, message
):
    code, _, err = verb(*command(tiny, source, tmp_path / "run", 5), change)
    assert code == 2
    assert message in err
    assert not (tmp_path / "run").exists()
