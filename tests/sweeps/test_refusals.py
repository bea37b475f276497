"""What is refused by name before anything starts."""

import dataclasses
import re
import subprocess
import sys

import pytest
from tiers import slow

from fmjax.cli.main import main
from fmjax.errors import UserError
from fmjax.sweeps.config import Asha, SweepConfig
from fmjax.sweeps.space import Integers, LogUniform, Uniform
from fmjax.sweeps.sweep import check_space, find_config, read_sweep
from tests.sweeps.conftest import GRID, KINDS, RATE, ROOT

HEAD = "sweep.config = 'quickstart.gin'\n"
SPACE = f"sweep.space = {{'{RATE}': (1e-3, 1e-2)}}\n"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"{HEAD}sweep.space = {{'cosine.learning_rat': (1e-3,)}}", "learning_rat'"),
        (f"{HEAD}sweep.space = {{'muon.b1': (0.9,)}}", "does not use 'muon'"),
        (f"{HEAD}sweep.space = {{'{RATE}': ('fast', 1e-3)}}", "cosine.learning_rate"),
        (f"{HEAD}sweep.space = {{'{RATE}': (1e-3, 'fast')}}", f"{RATE} = fast"),
        (f"{HEAD}sweep.space = {{}}", "sweep.space = {}"),
        (f"{HEAD}sweep.space = {{'{RATE}': ()}}", f"{RATE} = ()"),
        (f"{HEAD}sweep.space = {{'{RATE}': (1e-3, 0.001)}}", "a value twice"),
        (HEAD, "sweep.space has no value"),
        (SPACE, "sweep.config has no value"),
        ("train.steps = 3", "train"),
        (f"sweep.config = 'quickstrat.gin'\n{SPACE}", "Did you mean 'quickstart.gin'"),
        (f"sweep.config = 'cluster/local.gin'\n{SPACE}", "sweep.config"),
        (f"{HEAD}{SPACE}sweep.trials = 3", "sweep.trials = 3: expected None"),
        (f"{HEAD}{SPACE}sweep.search = 'random'", "sweep.trials = None"),
        (f"{HEAD}{SPACE}sweep.search = 'gird'", "sweep.search = 'gird'"),
        (f"{HEAD}{SPACE}sweep.seeds = 0", "sweep.seeds = 0"),
        (f"{HEAD}{SPACE}sweep.bindings = ('{RATE}=1',)", f"varies {RATE}"),
        (f"{HEAD}{SPACE}sweep.bindings = ('train.stesp=1',)", "'stesp'"),
        (f"{HEAD}sweep.seeds = 2\nsweep.space = {{'train.seed': (1,)}}", "sweep.seeds"),
        (
            f"{HEAD}sweep.space = {{'{RATE}': @uniform()}}\nuniform.low = 0.1\n"
            "uniform.high = 0.2",
            "@uniform(), which a grid",
        ),
        (
            f"{HEAD}{SPACE}sweep.stopping = @asha()\n"
            "sweep.bindings = ('train.eval_every=0',)",
            "train.eval_every = 0",
        ),
        (
            f"{HEAD}{SPACE}sweep.stopping = @asha()\nasha.first_step = 400",
            "asha.first_step = 400",
        ),
        (f"{HEAD}{SPACE}sweep.storage = 'nosql://x'", "sweep.storage"),
        (f"{HEAD}sweep.space = {{'adamw.b2': {{'a': ('x=1',)}}}}", "without a dot"),
        (f"{HEAD}sweep.space = {{'recipe': {{'a': ('adamw.b2',)}}}}", "NAME=VALUE"),
        (f"{HEAD}sweep.space = {{'recipe': {{'a': ('adamw.b=1',)}}}}", "'b'"),
        (f"{HEAD}sweep.space = {{'recipe': {{}}}}", "at least one value"),
        (
            f"{HEAD}sweep.space = {{'r': {{'a': ('{RATE}=1',)}}, '{RATE}': (1.0,)}}",
            f"two of its names vary {RATE}",
        ),
        (
            f"{HEAD}{SPACE}sweep.bindings = ('text_task.source=@text_files()', "
            "'text_task.tokenizer=@bytes()', "
            f"'text_files.files={__file__}', 'text_files.validation_fraction=0.0')",
            "no validation split",
        ),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_refused(text, named, tmp_path, capsys):
    (tmp_path / "sweep.gin").write_text(text)
    folder = tmp_path / "out"
    code = main(["sweep", str(tmp_path / "sweep.gin"), "--folder", str(folder)])
    assert code == 2
    assert named in capsys.readouterr().err
    assert not list(folder.rglob("trials/*"))


def test_macros_of_the_command_are_the_runs_but_for_those_of_the_file(tmp_path):
    file = tmp_path / "sweep.gin"
    file.write_text(
        "sweep.config = 'papers/nanogpt_shakespeare/cpu.gin'\n"
        f"sweep.space = {{'{RATE}': %RATES}}\nRATES = (1e-3,)"
    )
    given = ["TEXT_FILE=a.txt", "RATES=(1e-3, 1e-2)", "sweep.seeds=2"]
    config, near = read_sweep(file, given)
    assert config.bindings == ("TEXT_FILE=a.txt",)
    assert config.space == {RATE: (1e-3, 1e-2)}
    assert config.seeds == 2
    check_space(config, find_config(config.config, near, "sweep.config"), False)

    wrong, _ = read_sweep(file, ["TEXT_FILE=a.txt", "STEPS=3"])
    with pytest.raises(UserError, match="'STEPS=3': no value refers to %STEPS"):
        check_space(wrong, find_config(wrong.config, near, "sweep.config"), False)


@pytest.mark.parametrize(
    ("name", "named"),
    [("rates.xyz", "expected a file of"), ("no", "expected a file of")],
)
def test_a_figure_of_no_known_format_is_refused_before_the_sweep(
    name, named, tmp_path, capsys
):
    folder = tmp_path / "sweep"
    words = ["sweep", "sweeps/digits_rates.gin", "--folder", str(folder)]
    assert main([*words, "--plot", str(tmp_path / name)]) == 2
    assert named in capsys.readouterr().err
    assert not folder.exists()


def test_a_test_split_that_the_config_does_not_take_is_refused(tmp_path, capsys):
    folder = tmp_path / "sweep"
    words = ["sweep", "sweeps/digits_rates.gin", "--folder", str(folder)]
    assert main([*words, "--test", "tfds.validation='test'"]) == 2
    assert "tfds" in capsys.readouterr().err
    assert not folder.exists()


def test_a_value_that_fails_only_with_others_is_no_mistake_of_the_sweep(pretended):
    # 48 does not divide by 5 heads: these trials fail alone.
    config = dataclasses.replace(
        GRID,
        space={
            RATE: ("1e-2",),
            "transformer.num_heads": (8, 5),
            "transformer.embed_dim": (64, 80),
        },
        bindings=(*GRID.bindings, "transformer.num_kv_heads=1"),
        seeds=1,
    )
    assert len(pretended().sweep(config)) == 4


def test_a_metric_that_validation_will_not_have_is_refused(pretended):
    from fmjax.sweeps.sweep import run_sweep

    config = dataclasses.replace(GRID, metric="acuracy")
    with pytest.raises(UserError, match=r"'acuracy'.*Did you mean 'accuracy'"):
        run_sweep(
            config, pretended().folder, ROOT, names=lambda *_: ["accuracy", "loss"]
        )


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Uniform(1.0, 1.0), "uniform.high = 1.0"),
        (lambda: LogUniform(0.0, 1.0), "log_uniform.low = 0.0"),
        (lambda: Integers(1, 8, step=2), "integers.step = 2"),
        (lambda: Integers(2, 8, step=2, log=True), "integers.step = 2"),
        (lambda: Asha(reduction_factor=1), "asha.reduction_factor = 1"),
        (lambda: SweepConfig("a", {RATE: "1e-3"}), "sweep.space"),
    ],
)
def test_a_wrong_part_is_refused(make, named):
    with pytest.raises(UserError) as found:
        make()
    assert named in str(found.value)


def test_a_changed_sweep_is_refused_with_what_differs(pretended):
    sweep = pretended()
    config = dataclasses.replace(GRID, space={RATE: ("1e-2",)}, seeds=1)
    sweep.sweep(config)

    changed = dataclasses.replace(
        config,
        direction="maximize",
        bindings=(*GRID.bindings, "adamw.b2=0.5"),
    )
    with pytest.raises(UserError) as found:
        sweep.sweep(changed)
    assert "  sweep.direction: 'minimize' → 'maximize'\n" in str(found.value)
    assert "  adamw.b2: 0.95 → 0.5\n" in str(found.value)
    assert len(sweep.started) == 1
    # What affects no result may change.
    sweep.sweep(dataclasses.replace(config, at_once=2))
    assert len(sweep.started) == 1


def test_a_random_search_may_go_on_with_more_trials(pretended):
    sweep = pretended()
    config = dataclasses.replace(
        GRID, search="random", trials=2, seeds=1, space={RATE: LogUniform(1e-4, 1e-1)}
    )
    before = {row.trial: row.point for row in sweep.sweep(config)}
    after = {
        row.trial: row for row in sweep.sweep(dataclasses.replace(config, trials=3))
    }
    assert {n: after[n].point for n in before} == before
    assert len(sweep.started) == len(after) == 3


@pytest.mark.parametrize("kind", ["grid", slow("random")])
def test_a_sweep_with_more_seeds_keeps_the_runs_that_it_has(kind, pretended):
    config = dataclasses.replace(KINDS[kind], seeds=3)
    whole, grown = pretended("whole"), pretended("grown")
    whole.sweep(config)
    grown.sweep(KINDS[kind])
    grown.sweep(config)
    assert grown.results == whole.results
    assert sorted(grown.started) == sorted(whole.started)


@pytest.mark.slow
def test_more_seeds_do_not_repeat_a_run_that_failed(pretended):
    failing = pretended("failing")
    ways = {RATE: ("1e-2",), "train.keep_last": (2, 5)}
    config = dataclasses.replace(GRID, space=ways, seeds=1)
    failing.sweep(config)
    rows = failing.sweep(dataclasses.replace(config, seeds=2))
    assert [row.state for row in rows] == ["finished", "failed"]
    assert [[run.seed for run in row.runs] for row in rows] == [[0, 1]] * 2
    assert len(failing.started) == 4


def test_seeds_do_not_grow_where_draws_depend_on_results(pretended):
    sweep = pretended()
    config = dataclasses.replace(KINDS["bayesian"], trials=1)
    sweep.sweep(config)
    with pytest.raises(UserError, match=r"sweep.seeds: 1 → 2\n.*sweep.trials may grow"):
        sweep.sweep(dataclasses.replace(config, seeds=2))
    sweep.sweep(dataclasses.replace(config, trials=2))


def test_a_folder_of_something_else_is_refused(pretended):
    sweep = pretended()
    sweep.folder.mkdir()
    (sweep.folder / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis.tex"):
        sweep.sweep(GRID)


def test_sweeps_of_the_documentation_fit_their_configs(tmp_path):
    page = (ROOT / "docs/tasks/sweep.md").read_text(encoding="utf-8")
    texts = re.findall(r'```gin title="([\w.]+)"\n(.*?)```', page, re.DOTALL)
    assert [name for name, _ in texts] == [
        "rates.gin", "search.gin", "ablation.gin",
    ]  # fmt: skip
    files = [tmp_path / name for name, _ in texts]
    for file, (_, text) in zip(files, texts):
        file.write_text(text, encoding="utf-8")
    for file in files:
        config, near = read_sweep(file)
        found = find_config(config.config, near, "sweep.config")
        check_space(config, str(found), trust=False)


def test_without_optuna_only_the_sweep_itself_is_refused(pretended):
    code = (
        "import sys\nsys.modules['optuna'] = None\n"
        "from fmjax.cli.main import main\n"
        "assert main(['help', 'sweep']) == 0\n"
        "assert 'pandas' not in sys.modules\n"
        "sys.exit(main(['sweep', 'sweeps/digits_rates.gin', '--folder', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(pretended().folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'fmjax[sweep]'" in done.stderr
