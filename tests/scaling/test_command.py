"""`fmjax scaling`: from a file to a law, from a law to a size."""

import json

import numpy as np
import pytest

from fmjax.cli.main import main
from fmjax.scaling.presets import PRESETS
from fmjax.sharding.chips import CHIPS
from tests.scaling.runs import on_budgets, runs_of, write_csv

LAW = PRESETS["besiroglu"].law
PICTURE = b"\x89PNG"


def write(path, points, **others):
    return write_csv(
        path, parameters=points.parameters, tokens=points.tokens, loss=points.loss,
        **others,
    )  # fmt: skip


def test_a_fitted_law_sizes_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs.csv", runs_of(LAW))
    fit = ["scaling", "fit", "runs.csv", "--bootstrap", "20"]
    assert main([*fit, "--json", "law.json", "--plot", "fit.png"]) == 0
    assert "240" not in capsys.readouterr().out
    size = ["scaling", "size", "--law", "law.json", "--flops", "5.76e23"]
    assert main([*size, "--json", "size.json", "--plot", "size.png"]) == 0
    assert "of the form hoffmann" in capsys.readouterr().out

    answers = json.loads((tmp_path / "size.json").read_text())
    expected = LAW.optimum(5.76e23)
    assert answers["best"]["parameters"] == pytest.approx(expected.parameters)
    assert answers["best"]["tokens"] == pytest.approx(expected.tokens)
    low, high = answers["parameters_interval"]
    assert low <= answers["best"]["parameters"] * 1.0001
    assert high >= answers["best"]["parameters"] * 0.9999
    for name in ("fit.png", "size.png"):
        assert (tmp_path / name).read_bytes().startswith(PICTURE)


@pytest.mark.parametrize("law", ["isoflop", "envelope"])
def test_a_fitted_frontier_sizes_models(law, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if law == "isoflop":
        write(tmp_path / "runs.csv", on_budgets(LAW, np.geomspace(1e18, 1e21, 5)))
    else:
        points = runs_of(LAW, np.geomspace(1e7, 1e10, 20), np.geomspace(1e8, 3e11, 40))
        write(tmp_path / "runs.csv", points, run=points.parameters)
    fit = ["scaling", "fit", "runs.csv", "--law", law, "--bootstrap", "20"]
    assert main([*fit, "--json", "law.json", "--plot", "fit.png"]) == 0
    assert (tmp_path / "fit.png").read_bytes().startswith(PICTURE)
    size = ["scaling", "size", "--law", "law.json", "--flops", "1e20"]
    assert main([*size, "--json", "size.json"]) == 0
    answers = json.loads((tmp_path / "size.json").read_text())
    expected = LAW.optimum(1e20).parameters
    assert answers["best"]["parameters"] == pytest.approx(expected, rel=0.1)
    assert main([*size, "--plot", "size.png"]) == 2
    assert "has no losses of other sizes" in capsys.readouterr().err


def test_chip_hours_are_a_budget(tmp_path, capsys):
    file = tmp_path / "size.json"
    command = ["scaling", "size", "--law", "muennighoff", "--chips", "v5e-256"]
    options = ["--hours", "24", "--unique_tokens", "10B", "--json", str(file)]
    assert main([*command, *options, "--plot", str(tmp_path / "size.png")]) == 0
    answers = json.loads(file.read_text())
    # At the stated default MFU of 0.4.
    flops = 256 * CHIPS["v5e"].peak_flops * 0.4 * 24 * 3600
    assert answers["flops"] == pytest.approx(flops)
    assert answers["chip_hours"] == pytest.approx(24 * 256)
    assert answers["repetition"]["verdict"] == "too few"
    out = capsys.readouterr().out
    assert "10B unique tokens for this budget: too few" in out
    assert "24 h on 256 chips of 197 TFLOP/s at MFU 40%" in out


def test_a_size_has_an_optimal_time_on_chips(tmp_path):
    file = tmp_path / "size.json"
    command = ["scaling", "size", "--law", "hoffmann", "--parameters", "7B"]
    chips = ["--chips", "h100-64", "--mfu", "0.5", "--json", str(file)]
    assert main([*command, *chips]) == 0
    answers = json.loads(file.read_text())
    tokens = answers["best"]["tokens"]
    rate = 64 * CHIPS["h100"].peak_flops * 0.5
    assert answers["hours"] == pytest.approx(6 * 7e9 * tokens / rate / 3600, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["size", "--hours", "3"], "--hours 3: expected with --chips"),
        (["size", "--flops", "1e20", "--mfu", "0.4"], "--mfu: expected with --chips"),
        (
            ["size", "--flops", "1e20", "--chips", "v5e-256", "--hours", "3"],
            "--hours 3: expected without --flops",
        ),
        (["size", "--hours", "3", "--chips", "v9-4"], "expected one of v4, v5e"),
        (["size", "--hours", "3", "--chips", "v5e-4", "--mfu", "40"], "--mfu 40.0"),
        (["size", "--flops", "1e20", "--tolerance", "0"], "--tolerance 0.0"),
        (["size", "--flops", "1e20", "--json", "no/size.json"], "--json no/size.json"),
        (
            ["size", "--unique_tokens", "1B", "--plot", "a.png"],
            "--plot: expected a bud",
        ),
        (["size"], "no budget"),
        (["fit", "runs.csv"], "runs.csv cannot be read"),
        (["fit", "runs.csv", "--law", "isoflops"], "Did you mean 'isoflop'"),
        (["fit", "runs.csv", "--bootstrap", "-1"], "--bootstrap -1"),
        (["fit", "runs.csv", "--delta", "0"], "--delta 0.0"),
        (["fit", "runs.csv", "--budgets", "1e18,1e19"], "--law isoflop alone"),
    ],
)
def test_wrong_options_are_refused_by_name(
    options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["scaling", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["7X", "-1", "0", "1e", "B"])
def test_quantities_that_are_no_positive_numbers_are_refused(text, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["scaling", "size", f"--parameters={text}"])
    assert refused.value.code == 2
    assert "expected a positive number such as 1e21, 7B" in capsys.readouterr().err
