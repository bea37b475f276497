"""gin files in, frozen experiments out: round trips, isolation, trust, errors."""

import dataclasses
import re
import sys
import threading

import pytest

from fmjax.config import files as config_files
from fmjax.config.load import load_experiment, load_stored
from fmjax.config.render import bindings_of, differences, render
from fmjax.errors import UserError, suggest
from fmjax.sweeps.sweep import check_space, find_config, read_sweep
from fmjax.training.state import abstract_variables
from fmjax.training.vocab_size import fill_vocab_size

FOLDERS_OF_RUNS = (
    "clip/",
    "coca/",
    "finetune/imdb.gin",
    "finetune/sst2.gin",
    "m3ae/",
    "mae/",
    "papers/",
    "simclr/",
    "small/",
    "vit/",
)
SWEEPS = [
    name
    for name in config_files.shipped_configs()
    if name.startswith("sweeps/") or name.endswith("/sweep.gin")
]
RUNS = [
    name
    for name in config_files.shipped_configs()
    if (name.startswith(FOLDERS_OF_RUNS) or "/" not in name) and name not in SWEEPS
]


def macros(name: str) -> list[str]:
    """Values for what a shipped file, and those that it includes, ask for."""
    text = (config_files.configs_folder() / name).read_text()
    asked = {*re.findall(r"= %(\w+)$", text, re.M)}
    asked -= {*re.findall(r"^(\w+) = ", text, re.M)}
    found = {f"{macro}=some/path" for macro in asked}
    for included in re.findall(r"^include '(.*)'", text, re.M):
        found.update(macros(included))
    return sorted(found)


@pytest.mark.parametrize("name", RUNS)
def test_every_shipped_run_loads_builds_and_says_what_it_costs(name):
    experiment = load_experiment(name, macros(name))
    _, shapes = abstract_variables(fill_vocab_size(experiment.objective, 512))
    assert "params" in shapes
    experiment.optimizer.schedule.build(experiment.train.steps)
    header = (config_files.configs_folder() / name).read_text().split("\ninclude")[0]
    assert f"fmjax train {name}" in header
    assert "Costs" in header
    assert "Expect" in header or "expect" in header


@pytest.mark.parametrize("name", SWEEPS)
def test_every_shipped_sweep_fits_its_config_and_says_what_it_costs(name):
    config, near = read_sweep(name)
    config, _ = read_sweep(name, macros(config.config))
    found = find_config(config.config, near, "sweep.config")
    check_space(config, str(found), trust=False)
    text = (config_files.configs_folder() / name).read_text()
    header = text.split("\nsweep.")[0]
    assert f"fmjax sweep {name}" in header
    assert "Costs" in header
    assert "Expect" in header


# Parts for other models than the quickstart's decoder, and a run of such a model.
BASES = {
    "finetune/words.gin": "small/bert_imdb.gin",
    "finetune/text_to_text.gin": "small/t5_imdb.gin",
}
PARTS = sorted(set(config_files.shipped_configs()) - {*RUNS, *SWEEPS})


def included(folder, base: str, *parts: str):
    """A file that includes a run's config, whole if it asks for values, and parts."""
    if asked := macros(base):
        (folder / "base.gin").write_text(render(load_experiment(base, asked)))
        base = "base.gin"
    lines = [f"include '{name}'\n" for name in (base, *parts)]
    (folder / "run.gin").write_text("".join(lines))
    return folder / "run.gin"


@pytest.mark.parametrize("name", PARTS)
def test_every_part_fits_into_a_run(name, tmp_path):
    run = included(tmp_path, BASES.get(name, "quickstart.gin"), name)
    experiment = load_experiment(run, macros(name))
    if name.startswith("optim/"):
        assert experiment.optimizer.gin_name == name[6:-4]


@pytest.mark.parametrize("name", RUNS)
def test_printed_experiments_read_back_equal(name, tmp_path):
    experiment = load_experiment(name, macros(name))
    (tmp_path / "whole.gin").write_text(render(experiment))
    again = load_experiment(tmp_path / "whole.gin")
    assert again == experiment
    assert render(again) == render(experiment)


@pytest.mark.parametrize(
    ("base", "part", "model"),
    [
        ("small/bert_imdb.gin", "finetune/encoder.gin", "bert"),
        ("small/t5_imdb.gin", "finetune/encoder_decoder.gin", "seq2seq"),
    ],
)
def test_other_families_are_fine_tuned_by_one_more_line(base, part, model, tmp_path):
    run = included(tmp_path, base, "finetune/texts.gin", part)
    given = ["RUN=a", "RECORDS=b", f"{model}.num_classes=2"]
    objective = load_experiment(run, given).objective
    assert (objective.gin_name, objective.model.gin_name) == (
        "text_classification", model,
    )  # fmt: skip
    assert "params" in abstract_variables(fill_vocab_size(objective, 512))[1]


def test_infinite_values_read_back(tmp_path):
    experiment = load_experiment(
        "quickstart.gin",
        ["experiment.bad_steps=@bad_steps()", "bad_steps.sigmas=1e999"],
    )
    (tmp_path / "whole.gin").write_text(render(experiment))
    assert load_experiment(tmp_path / "whole.gin") == experiment


def test_two_values_of_one_kind_get_scopes(tmp_path):
    experiment = load_experiment(
        "quickstart.gin",
        [
            "data.validation=@other/text_task()",
            "other/text_task.source=@text_files()",
            "text_files.files=%TEXT_FILE",
            "TEXT_FILE=some/text.txt",
        ],
    )
    names = {owner for owner, _ in bindings_of(experiment)}
    assert {"text_task", "text_task_2/text_task"} <= names
    (tmp_path / "whole.gin").write_text(render(experiment))
    assert load_experiment(tmp_path / "whole.gin") == experiment


def test_experiments_never_meet():
    a = load_experiment("quickstart.gin", ["train.steps=3"])
    b = load_experiment("quickstart.gin")
    assert (a.train.steps, b.train.steps) == (3, 400)
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.train.steps = 4


def test_experiments_are_read_at_once_in_threads():
    found = {}

    def read(steps):
        experiment = load_experiment("quickstart.gin", [f"train.steps={steps}"])
        found[steps] = experiment.train.steps

    threads = [threading.Thread(target=read, args=(60 + i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {60 + i: 60 + i for i in range(8)}


def test_imports_run_only_when_trusted(tmp_path, monkeypatch):
    (tmp_path / "somebodys_model.py").write_text(
        "import dataclasses\n"
        "from fmjax.configurable import configurable\n"
        "from fmjax.optim.optimizers import AdamW\n"
        "@configurable('mine')\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Mine(AdamW):\n"
        "    extra: int = 7\n"
    )
    (tmp_path / "mine.gin").write_text(
        "import somebodys_model\n"
        "include 'quickstart.gin'\n"
        "experiment.optimizer = @mine()\n"
        "mine.schedule = @cosine()\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--trust"):
        load_experiment("mine.gin")
    assert "somebodys_model" not in sys.modules
    experiment = load_experiment("mine.gin", trust=True)
    assert experiment.optimizer.extra == 7
    assert experiment.modules == ("somebodys_model",)
    (tmp_path / "whole.gin").write_text(render(experiment))
    with pytest.raises(UserError, match="--trust"):
        load_experiment("whole.gin")
    assert load_experiment("whole.gin", trust=True) == experiment
    # So is a run directory's config, and one whose module is not here says so.
    with pytest.raises(UserError, match="--trust"):
        load_stored(tmp_path / "whole.gin")
    assert load_stored(tmp_path / "whole.gin", trust=True) == experiment
    (tmp_path / "elsewhere.gin").write_text("import nobodys_model\n")
    with pytest.raises(UserError, match=f"in the working directory {tmp_path}"):
        load_stored(tmp_path / "elsewhere.gin", trust=True)


def test_strings_need_no_quotes_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(
        "papers/nanogpt_shakespeare/cpu.gin",
        ["TEXT_FILE=../a b/text.txt", "transformer.norm=rmsnorm", "train.seed=3"],
    )
    assert experiment.data.train.source.files == str(tmp_path.parent / "a b/text.txt")
    assert experiment.objective.model.transformer.norm == "rmsnorm"
    assert experiment.train.seed == 3


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["train.steps=@cosine()"], "train.steps = @cosine(): expected int."),
        (["gpt.transformer=None"], "= None: expected @transformer(), found NoneType"),
        (["adamw.clip_norm='a'"], "expected float or None, found str"),
        (["experiment.freeze=[1]"], "expected (@freeze(), …), found tuple"),
        (["trian.steps=3"], "Did you mean 'train.steps'"),
        (["train.stpes=3"], "Did you mean 'steps'"),
        (["train.steps=many"], "train.steps = 'many': expected int, found str"),
        (["train.steps=True"], "train.steps = True: expected int, found bool"),
        (["transformer.norm=rms"], "transformer.norm = 'rms'"),
        (["transformer.norm_position=pst"], "Did you mean 'post'?"),
        (["lion.b1=0.9"], "does not use 'lion'"),
        (["experiment.optimizer=@adamv()"], "Did you mean 'adamw'"),
        (["train.steps=%STEPS"], "%STEPS, which has no value"),
        (["train.steps"], "expected NAME=VALUE"),
        (["train.microbatches=3"], "train.microbatches = 3"),
        (["train.seed=4294967301"], "train.seed = 4294967301: expected 0 to 2**32 - 1"),
        (["train.seed=-1"], "train.seed = -1: expected 0 to 2**32 - 1"),
        (["muon.schedule=@cosine()"], "does not use 'muon'"),
        (
            ["bad_steps.sigmas=3"],
            "does not use 'bad_steps', which experiment.bad_steps takes, as in "
            "experiment.bad_steps=@bad_steps()",
        ),
        (["mixup.alpha=0.1"], "takes, as in images.augment=(@mixup(),)"),
        (["experiment.optimizer=@adamw"], "= @adamw: expected @adamw()"),
        (["experiment.init_from=(@init_from,)"], "= @init_from: expected @init_from()"),
        (["optimizer=@adamw", "experiment.optimizer=%optimizer"], "expected @adamw()"),
        (["learning_rate=1"], "Did you mean 'cosine.learning_rate'"),
        (["stepz=9"], "Did you mean 'train.steps'"),
        (["TEXT_FILE=x"], "no value refers to %TEXT_FILE"),
        (
            ["text_files.files=%TEXT_FILE", "TEXT_FILE=x"],
            "does not use 'text_files'",
        ),
        (
            ["LENGTH=512", "data.length=%LENGTH", "data.length=128"],
            "'LENGTH=512': %LENGTH is used in 'data.length=%LENGTH' on the command "
            "line, but this experiment does not use",
        ),
    ],
)
def test_mistakes_are_named(bindings, message):
    with pytest.raises(UserError) as error:
        load_experiment("quickstart.gin", bindings)
    assert message in str(error.value)


def test_misspelled_macro_is_refused_with_the_nearest(tmp_path):
    config = "papers/nanogpt_shakespeare/cpu.gin"
    with pytest.raises(UserError, match=r"'TEXT_FLIE=x': .*Did you mean 'TEXT_FILE'"):
        load_experiment(config, ["TEXT_FILE=y", "TEXT_FLIE=x"])


def test_macro_of_the_users_file_that_nothing_reads_is_refused(tmp_path):
    file = tmp_path / "mine.gin"
    file.write_text("include 'quickstart.gin'\n\nbatch_size = 16\n")
    with pytest.raises(UserError) as error:
        load_experiment(file)
    assert f"{file}, line 3: no value refers to %batch_size" in str(error.value)
    assert "Did you mean 'train.batch_size'" in str(error.value)


def test_unread_macro_of_an_included_file_is_a_warning(tmp_path, monkeypatch, capsys):
    base = tmp_path / "base.gin"
    base.write_text("include 'quickstart.gin'\nSEED = 3\nstepz = 9\n")
    run = tmp_path / "run.gin"
    run.write_text("include 'base.gin'\ntrain.seed = %SEED\n")
    with monkeypatch.context() as shipped:
        # Shipped files set macros for all that include them.
        shipped.setattr("fmjax.config.reader.configs_folder", lambda: tmp_path)
        load_experiment(run)
    assert not capsys.readouterr().err
    assert load_experiment(run).train.seed == 3
    said = capsys.readouterr().err
    assert f"warning: {base}, line 3: no value refers to %stepz" in said
    assert "Did you mean 'train.steps'" in said
    assert "SEED" not in said


@pytest.mark.parametrize(
    ("name", "known"),
    [("mpnet", ["opt", "bert"]), ("mamba", ["lamb", "llama"]), ("xlnet", ["linear"])],
)
def test_no_name_is_suggested_that_merely_shares_letters(name, known):
    assert suggest(name, known) == ""


def test_unset_macros_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="TEXT_FILE=VALUE"):
        load_experiment("papers/nanogpt_shakespeare/cpu.gin")
    with pytest.raises(UserError, match=r"Did you mean 'quickstart.gin'"):
        load_experiment("quickstrat.gin")
    with pytest.raises(UserError, match=r"'\.': no such file"):
        load_experiment(".")
    (tmp_path / "a.gin").write_text("include 'b.gin'\n")
    (tmp_path / "b.gin").write_text("include 'a.gin'\n")
    with pytest.raises(UserError, match="includes itself"):
        load_experiment(tmp_path / "a.gin")
    for text in ("train.steps = = 3\n", "train.steps = (", 'a = """', '"""'):
        (tmp_path / "c.gin").write_text(text)
        with pytest.raises(UserError, match=r"c.gin"):
            load_experiment(tmp_path / "c.gin")


DOUBLED = ["A0 = [1, 1]"] + [f"A{i + 1} = [%A{i}, %A{i}]" for i in range(20)]
DOUBLED_MADE = ["A0 = [@cosine(), @cosine()]", *DOUBLED[1:]]
CHAIN = ["A0 = 1"] + [f"A{i + 1} = %A{i}" for i in range(400)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["A = %A", "gpt.vocab_size = %A"], "%A contains itself"),
        (["A = %B", "B = [1, %A]", "gpt.vocab_size = %B"], "%B contains itself"),
        (
            ["mixture.tasks = [@mixture()]", "data.train = @mixture()"],
            "contains itself",
        ),
        (
            ["a/mixture.tasks = [@mixture()]", "data.train = @a/mixture()"],
            "@a/mixture() contains itself",
        ),
        ([*DOUBLED, "gpt.vocab_size = %A20"], "expected at most 100,000"),
        ([*DOUBLED_MADE, "gpt.vocab_size = %A20"], "expected at most 100,000"),
        ([*CHAIN, "gpt.vocab_size = %A400"], "nested in more than 50 values"),
        (["gpt.vocab_size = " + "[" * 90 + "]" * 90], "nested in more than 50 values"),
        (["gpt.vocab_size = @gin.macro()"], "there is no configurable @gin.macro()"),
    ],
)
def test_values_that_never_end_are_refused_at_once(tmp_path, lines, message):
    file = tmp_path / "mine.gin"
    file.write_text("\n".join(["include 'quickstart.gin'", *lines]))
    with pytest.raises(UserError) as error:
        load_experiment(file)
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


def test_the_same_value_in_other_scopes_is_no_circle(tmp_path):
    file = tmp_path / "mine.gin"
    lines = ["A = %B", "B = %C", "C = 3", "adamw.schedule = @a/cosine()"]
    lines += ["a/cosine.warmup_steps = %A", "train.seed = %C", "train.log_every = %A"]
    file.write_text("\n".join(["include 'quickstart.gin'", *lines]))
    assert load_experiment(file).optimizer.schedule.warmup_steps == 3


def test_files_that_include_others_again_and_again_are_refused(tmp_path):
    for i in range(40):
        more = f"include '{i + 1}.gin'\n" * 2 if i < 39 else ""
        (tmp_path / f"{i}.gin").write_text(more)
    with pytest.raises(UserError, match="more than 1000 files"):
        load_experiment(tmp_path / "0.gin")


def test_compiled_programs_that_a_file_names_are_used_only_when_trusted(tmp_path):
    binding = "train.compilation_cache"
    theirs, mine = str(tmp_path / "theirs"), str(tmp_path / "mine")
    written = load_experiment("quickstart.gin", [f"{binding}={theirs}"])
    (tmp_path / "config.gin").write_text(render(written))
    (tmp_path / "mine.gin").write_text(
        f"include 'quickstart.gin'\n{binding} = '{theirs}'\n"
    )
    with pytest.raises(UserError, match=f"{binding} = .* run as code"):
        load_experiment(tmp_path / "mine.gin")
    for name, load in (("mine.gin", load_experiment), ("config.gin", load_stored)):
        trusted = load(tmp_path / name, trust=True)
        assert trusted.train.compilation_cache == theirs
        bound = load(tmp_path / name, [f"{binding}={mine}"])
        assert bound.train.compilation_cache == mine
    # A run directory still loads; nothing that loads it compiles with that.
    assert load_stored(tmp_path / "config.gin").train.compilation_cache is None


def test_what_changes_the_meaning_of_a_run():
    old = load_experiment("quickstart.gin")

    def changed(*bindings):
        new = load_experiment("quickstart.gin", bindings)
        return [name for name, _, _ in differences(old, new, runtime=False)]

    assert changed("mesh.fsdp=2", "train.log_every=3", "data.cache_dir=elsewhere") == []
    assert changed("transformer.remat=full", "train.microbatches=2") == []
    assert changed("train.seed=1") == ["train.seed"]
    assert changed("adamw.b1=0.8", "gpt.vocab_size=9000") == [
        "adamw.b1",
        "gpt.vocab_size",
    ]
    # The cosine reads train.steps; a schedule with its own end, or none, does not.
    assert changed("train.steps=401") == ["train.steps"]
    old = load_experiment("quickstart.gin", ["cosine.steps=400"])
    assert changed("cosine.steps=400", "train.steps=401") == []
    new = load_experiment("quickstart.gin", ["train.steps=401"])
    assert "train.steps" in [name for name, *_ in differences(old, new)]


def test_a_name_that_gin_has_too_is_ours():
    bindings = ["adamw.schedule=@constant()", "constant.learning_rate=1e-3"]
    experiment = load_experiment("quickstart.gin", bindings)
    assert experiment.optimizer.schedule.gin_name == "constant"
