"""`fmjax help`, `fmjax list` and the pages that the documentation renders."""

import pathlib
import re

import pytest

from fmjax.config import reference, registry
from fmjax.config.files import shipped_configs
from fmjax.configurable import fields_of
from fmjax.errors import UserError

registry.register_rooms()


@pytest.mark.parametrize("name", sorted(registry.CLASSES))
def test_every_field_of_every_configurable_is_documented(name):
    found = reference.entry(name)
    assert found.summary
    assert found.kind != "other"
    assert [field.name for field in found.fields if not field.text] == []


def test_help_tells_fields_with_types_defaults_and_where_it_is_taken():
    text = " ".join(reference.help_text("adamw").split())
    assert "Adam with decoupled weight decay" in text
    assert "adamw.b2: float; default 0.95 decay rate of the mean of squared" in text
    assert "adamw.clip_norm: float or None; default 1.0 the global norm" in text
    assert re.search(
        r"adamw.schedule: @constant\(\) or @cosine\(\) .*must be bound", text
    )
    assert "Taken by experiment.optimizer." in text
    assert "In shipped configs: " in text


def test_help_of_a_field_tells_allowed_values():
    text = reference.help_text("transformer.norm")
    assert "one of 'layernorm', 'rmsnorm'; default 'layernorm'" in text
    assert "\n      " in text
    text = reference.help_text("experiment.objective")
    assert "@causal_lm() or @classification()" in text


def test_fields_of_a_base_class_are_explained():
    # m3ae's docstring says what it adds to mae's.
    fields = {field.name: field.text for field in reference.entry("m3ae").fields}
    ours = {field.name: field.text for field in reference.entry("mae").fields}
    assert fields["patch_size"] == ours["patch_size"] != ""


def test_a_model_is_taken_by_the_objectives_of_shipped_configs():
    assert "causal_lm.model" in reference.entry("gpt").used_by
    assert "classification.model" not in reference.entry("gpt").used_by


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamv", "Did you mean 'adamw'"),
        ("adamw.beta", "It has schedule, weight_decay"),
        ("train.stepz", "Did you mean 'steps'"),
    ],
)
def test_help_of_an_unknown_name_suggests_a_known_one(name, message):
    with pytest.raises(UserError, match=message):
        reference.help_text(name)


def test_lists_hold_every_configurable_once():
    text = reference.list_text()
    listed = re.findall(
        r"\w+", " ".join(line.split(": ", 1)[-1] for line in text.splitlines())
    )
    for name in registry.CLASSES:
        assert listed.count(name) >= 1
    by_kind = [name for kind in reference.KINDS for name in reference.names_of(kind)]
    assert sorted(by_kind) == sorted(registry.CLASSES)


def test_list_of_a_kind_has_a_line_for_each_name():
    lines = reference.list_text("optimizers").splitlines()
    assert [line.split()[0] for line in lines] == [
        "adafactor",
        "adamw",
        "lamb",
        "lion",
        "muon",
    ]
    lines = reference.list_text("configs").splitlines()
    assert [line.split()[0] for line in lines] == shipped_configs()
    assert all(len(line.split()) > 1 for line in lines)


def test_unknown_kind_suggests_a_known_one():
    with pytest.raises(UserError, match="Did you mean 'optimizers'"):
        reference.list_text("optimisers")


def test_markdown_has_a_row_for_each_field():
    pages = reference.reference_markdown()
    for name, cls in registry.CLASSES.items():
        page = pages[reference.kind_of(name)]
        (section,) = re.findall(rf"^## `{name}`\n(.*?)(?=^## |\Z)", page, re.M | re.S)
        rows = re.findall(r"^\| `(\w+)` \|", section, re.M)
        fields = [f.name for f in fields_of(cls) if f.name != "modules"]
        assert rows == fields
        for row in section.splitlines():
            if row.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert all(f"`{name}`" in pages["configs"] for name in shipped_configs())


def test_verbs_print_them(capsys):
    from fmjax.cli.main import main

    assert main(["help", "adamw"]) == 0
    assert capsys.readouterr().out == reference.help_text("adamw") + "\n"
    assert main(["list", "schedules"]) == 0
    assert capsys.readouterr().out == reference.list_text("schedules") + "\n"
    assert main(["help"]) == main(["list"]) == 0
    assert capsys.readouterr().out == 2 * (reference.list_text() + "\n")
    assert main(["help", "adamv"]) == 2
    assert "there is no configurable 'adamv'" in capsys.readouterr().err


def test_printed_config_explains_itself_and_reads_back(tmp_path, capsys):
    from fmjax.cli.main import main
    from fmjax.config.load import load_experiment

    assert main(["config", "quickstart", "train.steps=7"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# The whole experiment: every field")
    assert "train.steps = 7\n" in text
    file = pathlib.Path(tmp_path, "mine.gin")
    file.write_text(text)
    assert load_experiment(file) == load_experiment("quickstart", ["train.steps=7"])
