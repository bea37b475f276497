"""Against runs whose metrics are written by hand."""

import json

import numpy as np
import pytest
from scipy import stats

from fmjax.config.load import load_experiment
from fmjax.config.render import render
from fmjax.errors import UserError
from fmjax.evaluation.compare import compare, curves

TRAIN = {"loss": 3.0, "tokens": 64.0, "step_seconds": 0.5, "tokens_per_second": 128.0}
BASE = ("cosine.learning_rate=0.002", "train.seed=0", "train.log_every=10")


@pytest.fixture
def make_run(tmp_path):
    def make(name, lines, *bindings):
        run_dir = tmp_path / name
        run_dir.mkdir(parents=True)
        experiment = load_experiment("quickstart.gin", [*BASE, *bindings])
        (run_dir / "config.gin").write_text(render(experiment))
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run_dir / "metrics.jsonl").write_text(text)
        return run_dir

    return make


def train(step, **values):
    return {"step": step, "split": "train"} | TRAIN | values


def validation(step, loss, **values):
    return {"step": step, "split": "validation", "loss": loss, "seconds": 10.0} | values


def test_table_holds_best_and_last_figures(make_run, tmp_path, capsys):
    run_dir = make_run(
        "a",
        [
            train(10, loss=5.0, tokens_per_second=1.0),
            train(20, loss=3.25),
            validation(20, 3.125, bits_per_byte=2.5),
            train(40, loss=2.75),
            validation(40, 3.5, bits_per_byte=2.875),
        ],
    )

    compare([run_dir], tmp_path / "a.png")

    (row,) = [line for line in capsys.readouterr().out.splitlines() if "│ a " in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    # 40 steps of half a second, and two evaluations of ten.
    assert cells == [
        "a", "40", "2.7500", "3.1250 at 20", "3.5000", "2.8750",
        "128 tokens/s", "0:00:40",
    ]  # fmt: skip
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_bindings_that_differ_are_listed(make_run, tmp_path, capsys):
    runs = [
        make_run("a", [train(1)]),
        make_run("b", [train(1)], "cosine.learning_rate=0.5"),
        make_run("c", [train(1)], "adamw.b2=0.5", "train.log_every=3"),
    ]

    compare(runs, tmp_path / "a.png")

    out = capsys.readouterr().out
    rows = {
        cells[0]: cells[1:]
        for cells in ([c.strip() for c in line.split("│")[1:-1]]
                      for line in out.splitlines() if "│" in line)
    }  # fmt: skip
    assert rows["cosine.learning_rate"] == ["0.002", "0.5", "0.002"]
    assert rows["adamw.b2"] == ["0.95", "0.95", "0.5"]
    assert rows["train.log_every"] == ["10", "10", "3"]
    assert "train.batch_size" not in rows


def test_curves_are_those_of_the_metrics(make_run):
    runs = [
        make_run("a", [train(1, loss=4.0), train(2, loss=None), validation(2, 3.0)]),
        make_run("b", [train(2, loss=2.0)], "adamw.b2=0.5"),
    ]

    (axes,) = curves(runs).axes

    drawn = [line.get_xydata().tolist() for line in axes.lines]
    np.testing.assert_equal(
        drawn, [[[1.0, 4.0], [2.0, np.nan]], [[2.0, 3.0]], [[2.0, 2.0]]]
    )
    assert axes.get_xlabel() == "step"
    labels = [line.get_label() for line in axes.lines[1:]]
    assert labels == ["a: adamw.b2 = 0.95", "b: adamw.b2 = 0.5"]


def test_batches_of_different_size_are_compared_over_tokens(make_run):
    small = make_run("a", [train(4, tokens=64.0)])
    large = make_run("b", [train(4, tokens=256.0)])

    (axes,) = curves([small, large]).axes

    assert axes.get_xlabel() == "tokens"
    assert [line.get_xdata().tolist() for line in axes.lines] == [[256.0], [1024.0]]


def test_runs_of_one_name_are_told_apart_by_their_paths(make_run, tmp_path, capsys):
    runs = [make_run("x/run", [train(1)]), make_run("y/run", [train(1)])]

    compare(runs, tmp_path / "a.png")

    out = capsys.readouterr().out.replace("│", "")
    assert "x/run" in out
    assert "y/run" in out
    assert "The configs are the same." in out


def test_no_file_is_written_unless_asked_for(make_run, tmp_path, monkeypatch, capsys):
    from fmjax.cli.main import main

    run_dir = make_run("a", [train(1)])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    assert main(["compare", str(run_dir)]) == 0

    assert "3.0000" in capsys.readouterr().out
    assert list((tmp_path / "here").iterdir()) == []


def test_losses_of_other_units_have_axes_of_their_own(make_run):
    images = {"images": 64.0, "images_per_second": 9.0, "tokens": None}
    lines = [{k: v for k, v in (train(2) | images).items() if v is not None}]
    runs = [make_run("a", [train(1)]), make_run("b", lines), make_run("c", [train(3)])]

    text, pictures = curves(runs).axes

    assert [line.get_xdata().tolist() for line in text.lines] == [[1], [3]]
    assert [line.get_xdata().tolist() for line in pictures.lines] == [[2]]
    assert text.get_ylabel() == "loss (tokens)"
    assert pictures.get_ylabel() == "loss (images)"


def test_paths_that_differ_are_told(make_run, tmp_path, capsys):
    data = ["text_task.source=@text_files()", "text_files.files=%TEXT_FILE"]
    runs = [
        make_run("a", [train(1)], *data, "TEXT_FILE=/one.txt", "data.cache_dir=/x"),
        make_run("b", [train(1)], *data, "TEXT_FILE=/two.txt", "train.seed=1"),
    ]

    compare(runs)
    (axes,) = curves(runs).axes

    out = capsys.readouterr().out
    assert "text_files.files" in out
    assert "'/one.txt'" in out
    assert "'/two.txt'" in out
    labels = [line.get_label() for line in axes.lines]
    assert labels == [
        "a: text_files.files = '/one.txt', train.seed = 0",
        "b: text_files.files = '/two.txt', train.seed = 1",
    ]


def test_runs_with_own_code_are_read_without_it(make_run, capsys):
    from fmjax.cli.main import main

    runs = [make_run("a", [train(1)]), make_run("b", [train(1)], "train.steps=9")]
    for run_dir in runs:
        config = run_dir / "config.gin"
        own = config.read_text().replace("adamw", "my_adam")
        config.write_text(f"import my_optimizer\n{own}")

    assert main(["compare", *map(str, runs)]) == 0
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if "train.steps" in line]
    assert [cell.strip() for cell in row.split("│")[2:4]] == ["400", "9"]
    assert "my_adam.b1" not in out
    assert "imports 'my_optimizer'" in out
    assert "--trust" in out

    # The module is not here: what is missing is told, and all else.
    assert main(["compare", *map(str, runs), "--trust"]) == 0
    assert "cannot import 'my_optimizer'" in capsys.readouterr().out

    assert main(["status", str(runs[0])]) == 0
    out = capsys.readouterr().out
    assert "causal_lm of gpt, on text_task; imports my_optimizer" in out


def test_line_that_a_killed_process_left_unfinished_is_skipped(make_run):
    run_dir = make_run("a", [train(1)])
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "spl')

    (axes,) = curves([run_dir]).axes

    assert axes.lines[0].get_xdata().tolist() == [1]


def test_missing_and_empty_metrics_are_named(make_run, tmp_path):
    run_dir = make_run("a", [])
    file = run_dir / "metrics.jsonl"
    with pytest.raises(UserError, match=f"{file} is empty"):
        compare([run_dir], tmp_path / "a.png")
    file.unlink()
    with pytest.raises(UserError, match=str(file)):
        compare([run_dir], tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_unknown_metric_suggests_a_known_one(make_run):
    with pytest.raises(UserError, match=r"'los'.*'loss'"):
        curves([make_run("a", [train(1)])], metric="los")


def test_picture_of_unknown_format_is_the_users_mistake(make_run, tmp_path):
    with pytest.raises(UserError, match=r"a\.jpq"):
        compare([make_run("a", [train(1)])], tmp_path / "a.jpq")


def seeds_of(make_run, values, *bindings):
    """Runs of the same config with seeds 0, 1, …, whose losses are given."""
    return [
        make_run(
            f"{'-'.join(bindings).replace('.', '_') or 'base'}-seed={seed}",
            [
                train(10, loss=value + 1.0, flops=5.0),
                validation(10, value + 0.5),
                train(20, loss=value, flops=5.0),
                validation(20, value),
            ],
            f"train.seed={seed}",
            *bindings,
        )
        for seed, value in enumerate(values)
    ]


def cells_of(out: str) -> dict[str, list[str]]:
    lines = [[c.strip() for c in x.split("│")[1:-1]] for x in out.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if cells}


def test_runs_that_differ_by_the_seed_are_one_row_with_an_interval(make_run, capsys):
    values = [3.0, 3.25, 3.125]
    runs = [
        *seeds_of(make_run, values),
        *seeds_of(make_run, [4.0, 4.5], "adamw.b2=0.5"),
        make_run("alone", [train(20), validation(20, 2.0)], "adamw.b2=0.9"),
    ]

    compare(runs)

    rows = cells_of(capsys.readouterr().out)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    half = (interval.high - interval.low) / 2
    assert rows["base"][:2] == ["3", "20"]
    assert rows["base"][4] == f"3.1250 ± {half:.4f}"
    # t(0.975, 1) is 12.706 = tan(0.475 π), and s / √2 half of the difference.
    half = np.tan(0.475 * np.pi) * 0.25
    assert rows["adamw_b2=0_5"][4] == f"4.2500 ± {half:.4f}"
    assert rows["alone"][3:5] == ["2.0000 at 20", "2.0000"]
    assert rows["adamw.b2"] == ["0.95", "0.5", "0.9"]
    assert "train.seed" not in rows


def test_equal_configs_of_one_seed_stay_apart(make_run, capsys):
    compare([make_run("a", [train(1)]), make_run("b", [train(1)])])
    assert {"a", "b"} <= cells_of(capsys.readouterr().out).keys()


def test_seeds_are_drawn_as_their_mean_with_a_band(make_run):
    (axes,) = curves(seeds_of(make_run, [3.0, 3.25])).axes
    thin, thick = axes.lines
    assert thin.get_xydata().tolist() == [[10, 4.125], [20, 3.125]]
    assert thick.get_xydata().tolist() == [[10, 3.625], [20, 3.125]]
    (band,) = axes.collections
    half = np.tan(0.475 * np.pi) * 0.125
    ends = band.get_paths()[0].get_extents()
    np.testing.assert_allclose(
        [ends.x0, ends.y0, ends.x1, ends.y1], [10, 3.125 - half, 20, 3.625 + half]
    )
    assert thick.get_label() == "base (2 seeds)"


@pytest.mark.parametrize(
    ("over", "training", "checked"),
    [
        ("steps", [10, 20], [10, 20]),
        ("tokens", [640, 1280], [640, 1280]),
        ("flops", [50, 100], [50, 100]),
        # Half a second a step; the second comes after an evaluation of ten.
        ("seconds", [5, 20], [5, 20]),
    ],
)
def test_curves_are_drawn_over_what_was_spent(over, training, checked, make_run):
    (axes,) = curves(seeds_of(make_run, [3.0, 3.25]), over=over).axes
    assert axes.lines[0].get_xdata().tolist() == training
    assert axes.lines[1].get_xdata().tolist() == checked


def test_an_axis_that_a_run_does_not_have_is_refused(make_run):
    run_dir = make_run("a", [train(1)])
    with pytest.raises(UserError, match=r"--over images: .* counts tokens"):
        curves([run_dir], over="images")
    with pytest.raises(UserError, match=r"--over flops: .*metrics.jsonl has none"):
        curves([run_dir], over="flops")
    with pytest.raises(UserError, match=r"--over flop: .*Did you mean 'flops'"):
        curves([run_dir], over="flop")


def test_a_folder_of_runs_stands_for_them(make_run, tmp_path, capsys):
    seeds_of(make_run, [3.0, 3.25])
    make_run("failed", [])
    (tmp_path / "failed" / "metrics.jsonl").unlink()

    compare([tmp_path])

    out = capsys.readouterr().out
    assert "base" in cells_of(out)
    assert "failed: left out, as it has no metrics" in out


def test_importance_is_that_of_the_binding_that_decides(make_run, tmp_path, capsys):
    for rate in ("0.001", "0.01"):
        for width in ("0.5", "0.9", "0.95"):
            loss = 2.0 + (rate == "0.01") + 0.01 * float(width)
            make_run(
                f"{rate}-{width}",
                [train(20), validation(20, loss)],
                f"cosine.learning_rate={rate}",
                f"adamw.b2={width}",
            )

    compare([tmp_path], importance=True)

    rows = cells_of(capsys.readouterr().out)
    assert int(rows["cosine.learning_rate"][0].strip("%")) >= 95
    assert int(rows["adamw.b2"][0].strip("%")) <= 5


def test_importance_of_too_few_runs_is_refused(make_run):
    runs = seeds_of(make_run, [3.0, 3.25])
    with pytest.raises(UserError, match=r"importance: 2 runs .* at least 4"):
        compare(runs, importance=True)
