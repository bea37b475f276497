"""Small language configs learn: short runs of them stay above floors.

The figures of whole runs stand in the configs' headers.
"""

import pytest

# A fifth of the labelled reviews, and a hundredth of those to validate on.
FEW = ("tfds.train='train[:20%]'", "tfds.validation='test[:1%]'")


@pytest.fixture
def train(trained, shared_data):
    """Runs a config on a part of IMDb for so many steps."""

    def run(config, run_dir, steps, *bindings):
        folder = f"TFDS_DIR={shared_data / 'tfds'}"
        trained(config, run_dir, folder, *FEW, f"train.steps={steps}", *bindings)

    return run


def nats_below_unigram(found: dict[str, float]) -> float:
    return found["unigram_nll"] - found["nll"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "steps", "nats", "bindings"),
    [
        ("gpt", 80, 0.3, ()),
        ("mixtral", 80, 0.4, ()),
        ("t5", 110, 0.2, ("train.batch_size=16",)),
        # Norms behind its layers need the warm-up of the whole run.
        ("bart", 200, 0.5, ("cosine.warmup_steps=150", "train.batch_size=16")),
        # Less than the targets that can be read as they are are worth in the end.
        ("bert", 120, 0.35, ("train.batch_size=64",)),
    ],
)
def test_it_learns(train, validated, tmp_path, config, steps, nats, bindings):
    train(f"small/{config}_imdb.gin", tmp_path / "run", steps, *bindings)
    assert nats_below_unigram(validated(tmp_path / "run")) >= nats


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "steps", "auc"), [("electra", 100, 0.53), ("deberta", 100, 0.52)]
)
def test_replaced_tokens_are_told_from_real_ones(
    train, validated, tmp_path, config, steps, auc
):
    run_dir = tmp_path / "run"
    train(f"small/{config}_imdb.gin", run_dir, steps, "train.batch_size=32")
    assert validated(run_dir)["auc"] >= auc


@pytest.mark.slow
def test_alexatm_learns_behind_an_encoder_that_was_frozen(train, validated, tmp_path):
    encoder = ("small/alexatm_encoder_imdb.gin", tmp_path / "encoder")
    train(*encoder, 50, "train.batch_size=16")
    train(
        "small/alexatm_imdb.gin", tmp_path / "run", 120,
        f"ENCODER={tmp_path / 'encoder'}", "freeze.until=30",
    )  # fmt: skip
    assert nats_below_unigram(validated(tmp_path / "run")) >= 0.4


@pytest.mark.slow
def test_a_transformer_begins_to_translate(trained, measured, tmp_path, shared_data):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for language in ("en", "de"):
        everything = shared_data / "text" / "multi30k"
        (pairs / f"train.{language}").symlink_to(everything / f"train.{language}")
        lines = (everything / f"val.{language}").read_text().splitlines(keepends=True)
        (pairs / f"val.{language}").write_text("".join(lines[:250]))
    trained(
        "small/transformer_multi30k.gin", tmp_path / "run", f"PAIRS_DIR={pairs}",
        "train.steps=120", "train.batch_size=8", "inverse_square_root.warmup_steps=60",
    )  # fmt: skip
    short = ("--beams", "1", "--max_tokens", "30")
    assert measured(tmp_path / "run", "--bleu", *short)["bleu"] >= 1.5
