"""The benchmarks run; the times that they measure are asserted nowhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

with_paths = jax.tree_util.tree_leaves_with_path
FOLDER = Path(__file__).parents[2] / "benchmarks"


def table(program: str, *arguments: str) -> list[list[str]]:
    """The words of each row of the tables that a program prints."""
    done = subprocess.run(
        [sys.executable, FOLDER / program, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines() if "│" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    "families", [["gpt2"], ["gemma2", "marian", "vit"]], ids=" ".join
)
def test_families_are_measured_side_by_side(families):
    # The program itself refuses models that differ in size or in the first loss.
    sizes = ("--size", "smoke", "--rounds", "1")
    rows = table("families.py", "--families", *families, *sizes)
    assert [row[1] for row in rows] == ["fmjax", "PyTorch"] * len(families)


@pytest.mark.slow
def test_rates_of_batches_and_seconds_of_compiling_are_printed():
    small = ("--documents", "300", "--batches", "3", "--layers", "1")
    rows = table("input_rates.py", *small)
    assert [row[1] for row in rows] == ["blocks", "packed", "without", "from"]


@pytest.mark.slow
def test_rates_of_texts_and_of_a_cache_are_printed():
    rows = table("text_rates.py", "--megabytes", "2")
    assert [row[1] for row in rows] == ["text.jsonl", "text.parquet", "the", "the"]


@pytest.mark.slow
def test_memory_of_a_large_file_is_printed(tmp_path):
    done = subprocess.run(
        [
            sys.executable, FOLDER / "large_file.py", "--gigabytes", "0.05",
            "--seconds", "1", "--folder", tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"texts: \d+ MB .* peak \d+ MiB of at most 1536", done.stdout)
    assert re.search(r"batches: \d+ MB .* peak \d+ MiB of at most", done.stdout)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_packed_conversations_have_less_padding_than_single_ones(tmp_path):
    lines = (
        json.dumps({"question": f"what is {n} and {n * n}? " * 5, "answer": "much"})
        for n in range(2000)
    )
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    small = ("--length", "128", "--rows", "2", "--layers", "1", "--width", "32")
    rows = table("packing.py", str(tmp_path), *small, "--rounds", "1")
    assert [row[1] for row in rows] == ["packed", "documents"]
    conversations, padding = (
        [float(row[i].rstrip("%")) for row in rows] for i in (3, 5)
    )
    assert conversations[0] > conversations[1] == 1
    assert padding[0] < padding[1] / 2


@pytest.mark.slow
def test_ways_to_watch_a_run_are_measured_in_turn():
    small = ("transformer.num_layers=1", "transformer.embed_dim=32", "data.length=32")
    rows = table("watching.py", "--rounds", "1", *small, "transformer.num_heads=2")
    assert len([row for row in rows if row[-2].replace(".", "").isdigit()]) == 4


@pytest.mark.parametrize("name", ["vit_mae", "clip"])
def test_stacks_of_models_in_models_are_unrolled_too(monkeypatch, name):
    monkeypatch.syspath_prepend(FOLDER)
    import families

    family, size = families.FAMILIES[name], families.SIZES["smoke"]
    objective, params = family.ours(family.make(size), size)
    objective, params = families.unrolled(objective, params)
    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    paths = [jax.tree_util.keystr(path) for path, _ in with_paths(params)]
    assert not any("'layers'" in path for path in paths)
    assert sum("'layer_0'" in path for path in paths) > 20
