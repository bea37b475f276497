"""Run directories of earlier versions: their stored configs load for ever.

old_runs/ holds config.gin files that earlier versions wrote; no line is ever changed.
The first of them are of November 2026, before any name was changed.
"""

import pathlib

import pytest

from fmjax.config import registry, renamed, stored
from fmjax.config.files import shipped_configs
from fmjax.config.load import load_experiment, load_stored
from fmjax.config.render import bindings_of, render
from fmjax.config.statements import Binding, Reference, replace_values
from fmjax.errors import UserError
from fmjax.models.layers.disentangled import Disentangled
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.position_bias import Alibi, RelativeBuckets
from fmjax.models.layers.rotary import Rotary
from fmjax.training.imported import Imported
from fmjax.training.reporting.trackers.weights_and_biases import WeightsAndBiases

OLD = sorted((pathlib.Path(__file__).parent / "old_runs").glob("*.gin"))
NAMED = {file.stem: file for file in OLD}


def values(experiment) -> dict[str, str]:
    return {".".join(key): value for key, value in bindings_of(experiment).items()}


@pytest.mark.parametrize("file", OLD, ids=lambda file: file.stem)
def test_old_run_loads_with_the_values_that_it_was_stored_with(file):
    found = values(load_stored(file))
    for line in file.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, value = line.split(" = ", 1)
        for old, new in renamed.CONFIGURABLES.items():
            name = name.replace(old, new)
            value = value.replace(f"@{old}()", f"@{new}()")
        *scope, last = name.split("/")
        owner, field = last.split(".")
        if (owner, field) in renamed.REPLACED or field == "position_bias":
            continue  # What became of it has a test of its own.
        field = renamed.FIELDS.get((owner, field), field)
        assert found["/".join([*scope, f"{owner}.{field}"])] == value


@pytest.mark.parametrize("file", OLD, ids=lambda file: file.stem)
def test_old_run_is_stored_again_in_the_names_of_today(file, tmp_path):
    experiment = load_stored(file)
    (tmp_path / "config.gin").write_text(render(experiment))
    assert load_experiment(tmp_path / "config.gin") == experiment


def test_old_names_of_stored_configs_mean_what_they_meant():
    found = load_stored(NAMED["gpt_rotary"])
    assert found.data.max_corrupt_fraction == 0.2
    assert load_stored(NAMED["vit_digits"]).data.max_corrupt_fraction == 0.5
    objective = load_stored(NAMED["simclr_cifar10"]).objective
    assert objective.gin_name == "nt_xent"
    assert objective.temperature == 0.2
    text = load_stored(NAMED["clip_lit_digits"]).objective.model.text
    assert text.gin_name == "text_encoder"
    assert text.transformer.num_layers == 2


def test_a_sample_prompt_becomes_one_of_the_evaluations():
    evaluations = load_stored(NAMED["quickstart_muon"]).evaluations
    assert [part.gin_name for part in evaluations] == ["unigram_baseline", "sample"]
    assert evaluations[1].prompt == "def "


def test_the_dtype_of_an_import_becomes_a_part_of_what_is_known_of_it(tmp_path):
    text = NAMED["import_gpt2"].read_text(encoding="utf-8")
    stored = tmp_path / "config.gin"
    for line, expected in (
        ("experiment.imported_dtype = 'float16'", Imported("float16")),
        ("experiment.imported_dtype = None", None),
    ):
        stored.write_text(f"{text}\n{line}\n")
        assert load_stored(stored).imported == expected


@pytest.mark.parametrize(
    ("value", "expected"), [("True", "bicubic_antialiased"), ("False", "bicubic")]
)
def test_antialiasing_becomes_a_kind_of_interpolation(value, expected, tmp_path):
    stored = tmp_path / "config.gin"
    text = NAMED["vit_digits"].read_text(encoding="utf-8")
    stored.write_text(f"{text}\nvit.positions = 'learned'\nvit.antialias = {value}\n")
    assert load_stored(stored).objective.model.interpolation == expected


def test_a_base_of_rotary_positions_becomes_a_config_of_them():
    mixtral = load_stored(NAMED["import_mixtral"]).objective.model
    assert mixtral.transformer.rotary == Rotary(1e6)
    gpt2 = load_stored(NAMED["import_gpt2"]).objective.model
    assert gpt2.transformer.rotary is None


def test_norms_over_queries_and_keys_with_an_offset_are_refused(tmp_path):
    text = NAMED["import_mixtral"].read_text(encoding="utf-8")
    stored = tmp_path / "config.gin"
    # Bound by that version too, to False.
    for field in ("qk_norm", "unit_offset_norm"):
        assert f"transformer.{field} = False" in text
    name = "transformer.qk_norm"
    with_norm = text.replace(f"{name} = False", f"{name} = True")
    stored.write_text(with_norm)
    assert load_stored(stored).objective.model.transformer.qk_norm is True
    old, new = (f"transformer.unit_offset_norm = {value}" for value in (False, True))
    stored.write_text(with_norm.replace(old, new))
    with pytest.raises(UserError, match="of a run of an earlier version"):
        load_stored(stored)
    stored.write_text(with_norm.replace(old, f"{new}\ntransformer.norm_weights = True"))
    assert load_stored(stored).objective.model.transformer.qk_norm is True


def test_numbers_of_experts_become_a_config_of_them():
    mixtral = load_stored(NAMED["import_mixtral"]).objective.model
    assert mixtral.transformer.experts == Experts(5, 3, None)
    gpt2 = load_stored(NAMED["import_gpt2"]).objective.model
    assert gpt2.transformer.experts is None


def test_position_biases_become_configs_of_their_own():
    def bias(name, field):
        model = load_stored(NAMED[name]).objective.model
        return getattr(model, field).position_bias

    assert bias("import_t5", "encoder") == RelativeBuckets(8, 14)
    assert bias("import_t5", "decoder") == RelativeBuckets(8, 14)
    assert bias("import_deberta", "transformer") == Disentangled(8, 20)
    assert bias("small_deberta_imdb", "generator") == Disentangled(16, 64)
    assert bias("small_alexatm_imdb", "decoder") == Alibi()
    assert bias("import_gpt2", "transformer") is None


OLD_BINDINGS = {
    "transformer.num_experts=8": (
        "transformer.num_experts is no longer a field: write experts.number"
    ),
    "transformer.relative_buckets=8": (
        "transformer.relative_buckets is no longer a field: write "
        "relative_buckets.number"
    ),
    "transformer.position_bias='alibi'": (
        "transformer.position_bias = 'alibi' is now written "
        "transformer.position_bias = @alibi()"
    ),
    "transformer.rope_theta=5e5": (
        "transformer.rope_theta is no longer a field: write rotary.theta"
    ),
    "vit.antialias=True": (
        "vit.antialias is no longer a field: write vit.interpolation = "
        "'bicubic_antialiased'"
    ),
    "experiment.imported_dtype='float32'": (
        "experiment.imported_dtype is no longer a field: write imported.dtype"
    ),
    "train.sample_prompt=None": (
        "train.sample_prompt is no longer a field: write sample.prompt"
    ),
    "data.bad_share=0.5": "data.bad_share is now called data.max_corrupt_fraction",
    "text_tower.vocab_size=64": "'text_tower' is now called 'text_encoder'",
    "experiment.objective=@image_view_contrast()": (
        "@image_view_contrast is now called @nt_xent"
    ),
}


@pytest.mark.parametrize("binding", OLD_BINDINGS)
def test_old_name_on_the_command_line_or_in_a_file_is_refused(binding, tmp_path):
    with pytest.raises(UserError) as error:
        load_experiment("quickstart.gin", [binding])
    assert f"{binding!r} on the command line: {OLD_BINDINGS[binding]}" in str(
        error.value
    )
    file = tmp_path / "mine.gin"
    file.write_text(f"include 'quickstart.gin'\n{binding}\n")
    with pytest.raises(UserError) as error:
        load_experiment(file)
    assert f"mine.gin, line 2: {OLD_BINDINGS[binding]}" in str(error.value)


@pytest.mark.parametrize("file", OLD, ids=lambda file: file.stem)
def test_config_of_an_old_run_directory_is_a_config_for_a_new_run(file, tmp_path):
    (tmp_path / "config.gin").write_text(file.read_text())
    (tmp_path / "checkpoints").mkdir()
    assert load_experiment(tmp_path / "config.gin") == load_stored(file)
    with pytest.raises(UserError, match="is now called"):
        load_experiment(tmp_path / "config.gin", ["data.bad_share=0.5"])


def test_old_name_over_a_stored_config_is_refused():
    with pytest.raises(UserError, match="is now called"):
        load_stored(NAMED["gpt_rotary"], ["data.bad_share=0.5"])


@pytest.mark.parametrize("name", ["vit/digits", "vit/digits.gin"])
def test_old_name_of_a_shipped_config_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"is now called 'small/vit_digits\.gin'"):
        load_experiment(name)
    (tmp_path / "mine.gin").write_text(f"include '{name}'\n")
    with pytest.raises(UserError, match=r"mine\.gin includes .*small/vit_digits"):
        load_experiment(tmp_path / "mine.gin")


def test_every_new_name_exists():
    load_experiment("quickstart.gin")
    assert set(renamed.CONFIGURABLES.values()) <= registry.CLASSES.keys()
    assert not renamed.CONFIGURABLES.keys() & registry.CLASSES.keys()
    for (owner, old), new in renamed.FIELDS.items():
        assert new in registry.field_names(owner)
        assert old not in registry.field_names(owner)
    for owner, old in renamed.REPLACED:
        assert old not in registry.field_names(owner)
    for (owner, field, _), new in renamed.VALUES.items():
        assert field in registry.field_names(owner)
        assert new == "None" or new[1:-2] in registry.CLASSES
    for owner, field in stored.STORED_DEFAULTS:
        assert field in registry.field_names(owner)
    assert {f"{new}.gin" for new in renamed.CONFIGS.values()} <= {*shipped_configs()}


def test_absent_field_takes_the_value_that_it_had_before_it_existed(
    monkeypatch, tmp_path
):
    # As if the field had been added since, where all runs had computed with 'relu'.
    monkeypatch.setitem(stored.STORED_DEFAULTS, ("transformer", "activation"), "'relu'")
    lines = NAMED["clip_lit_digits"].read_text().splitlines(keepends=True)
    kept = [line for line in lines if "transformer.activation" not in line]
    assert len(lines) - len(kept) == 2
    (tmp_path / "config.gin").write_text("".join(kept))
    model = load_stored(tmp_path / "config.gin").objective.model
    assert model.text.transformer.activation == "relu"
    assert model.image.transformer.activation == "relu"
    # A config that spells the field keeps its own.
    model = load_stored(NAMED["clip_lit_digits"]).objective.model
    assert model.text.transformer.activation == "gelu"


def test_runs_on_text_files_keep_the_tail_as_validation(tmp_path):
    """Before text_files.split existed, the end of the bytes was held out."""
    config = load_experiment(
        "quickstart.gin",
        ["text_task.source=@text_files()", f"text_files.files={tmp_path}/t.txt"],
    )
    assert config.data.train.source.split == "hash"
    lines = render(config).splitlines(keepends=True)
    kept = [line for line in lines if "text_files.split" not in line]
    assert len(lines) - len(kept) == 2
    (tmp_path / "config.gin").write_text("".join(kept))
    assert load_stored(tmp_path / "config.gin").data.train.source.split == "tail"


def test_translation_of_a_field_into_another_form(monkeypatch):
    """As if the cosine schedule had become a linear one."""

    def to_linear(bindings):
        def linear(value):
            if value == Reference((), "cosine"):
                return Reference((), "linear")
            return value

        return [
            Binding(
                "linear" if b.owner == "cosine" else b.owner,
                b.field,
                replace_values(b.value, linear),
                b.scope,
            )
            for b in bindings
        ]

    monkeypatch.setattr(stored, "TRANSLATIONS", [*stored.TRANSLATIONS, to_linear])
    schedule = load_stored(NAMED["quickstart_muon"]).optimizer.schedule
    assert schedule.gin_name == "linear"


def test_a_project_at_weights_and_biases_becomes_a_tracker(tmp_path):
    text = NAMED["quickstart_muon"].read_text(encoding="utf-8")
    stored = tmp_path / "config.gin"
    stored.write_text(
        text.replace("train.wandb_project = None", "train.wandb_project = 'p'")
    )
    assert load_stored(stored).trackers == (WeightsAndBiases("p"),)
    assert load_stored(NAMED["quickstart_muon"]).trackers == ()
