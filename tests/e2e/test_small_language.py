"""Every small language config learns: short runs of them stay above floors.

The figures of whole runs stand in the configs' headers.
"""

import pytest

# A tenth of IMDb.
FEW = (
    "tfds.train='train[:10%]'",
    "tfds.validation='test[:2%]'",
    "train.eval_batches=8",
)


@pytest.fixture
def train(trained, shared_data):
    """Runs a config for so many steps."""

    def run(config, run_dir, steps, *bindings):
        data = (f"TFDS_DIR={shared_data / 'tfds'}", *FEW)
        steps = (f"train.steps={steps}", "cosine.warmup_steps=20")
        trained(config, run_dir, *steps, *data, *bindings)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "steps", "below"),
    [
        ("gpt_imdb", 300, 0.4),
        ("mixtral_imdb", 200, 0.3),
        ("bert_imdb", 150, 0.1),
        ("deberta_imdb", 150, 0.1),
        ("t5_imdb", 200, 0.1),
        ("bart_imdb", 200, 0.3),
        ("alexatm_encoder_imdb", 150, 0.1),
    ],
)
def test_it_is_below_the_unigram_baseline(
    train, measured, tmp_path, config, steps, below
):
    train(f"small/{config}.gin", tmp_path / "run", steps)
    found = measured(tmp_path / "run")
    assert found["nll"] <= found["unigram_nll"] - below


@pytest.mark.slow
def test_electra_detects_replaced_tokens(train, measured, tmp_path):
    train("small/electra_imdb.gin", tmp_path / "run", 200)
    assert measured(tmp_path / "run")["auc"] >= 0.55


@pytest.mark.slow
def test_the_transformer_translates(trained, measured, shared_data, tmp_path):
    trained(
        "small/transformer_multi30k.gin", tmp_path / "run", "train.steps=300",
        f"PAIRS_DIR={shared_data / 'text' / 'multi30k'}",
    )  # fmt: skip
    assert measured(tmp_path / "run", "--bleu")["bleu"] >= 2
