"""A run with a parametrization is stored, continued, evaluated and exported."""

import json

import pytest
from tiers import slow

from fmjax.config.load import load_stored
from fmjax.training.reporting import metrics

SHORT = (
    "train.steps=3", "cosine.warmup_steps=1", "transformer.num_kv_heads=2",
    "train.batch_size=8",
)  # fmt: skip
WIDTH = ("experiment.parametrization=@mup()", "mup.base_width=16")
SCOPED = (
    "experiment.parametrization=@completep()", "completep.base=@base/gpt()",
    "base/transformer.embed_dim=16", "base/transformer.num_heads=1",
    "base/transformer.num_kv_heads=1", "base/transformer.mlp_dim=32",
)  # fmt: skip


@pytest.mark.parametrize("how", [WIDTH, slow(SCOPED)])
@pytest.mark.slow
def test_a_parametrized_run_is_stored_with_its_multipliers(tiny, tmp_path, verb, how):
    run_dir = tmp_path / "run"
    command = ("train", *tiny, *SHORT, *how, "--run_dir", run_dir)
    code, out, _ = verb(*command)
    assert code == 0
    assert "learning rates by parameters: × 1 of" in out
    stored = load_stored(run_dir / "config.gin")
    assert stored.objective.model.transformer.multipliers.logits == 0.5
    for line in metrics.read(run_dir, "train"):
        rates = {n: x for n, x in line.items() if n.startswith("learning_rate/")}
        # Twice the base's width: hidden weights have half of the rate.
        assert rates["learning_rate/0.5"] == 0.5 * line["learning_rate"]
        assert rates["learning_rate/1"] == line["learning_rate"]
    # The same command finds the same config.
    code, out, _ = verb(*command)
    assert code == 0
    assert "finished already" in out
    code, out, _ = verb("eval", run_dir)
    assert code == 0
    (last,) = metrics.read(run_dir, "validation")
    assert json.loads(out)["loss"] == pytest.approx(last["loss"], rel=1e-5)
    # Granite alone has such multipliers.
    code, out, _ = verb("export", run_dir, tmp_path / "hf")
    assert code == 0
    assert "model_type granite" in out
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["logits_scaling"] == 2
    code, _, err = verb("export", run_dir, tmp_path / "l", "--model_type", "llama")
    assert code == 2
    assert "multipliers" in err
