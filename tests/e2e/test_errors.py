"""A user's mistake: a message naming the binding, exit code 2, nothing written."""

import jax.numpy as jnp
import pytest

from fmjax.training import traced_step

MISTAKES = {
    "unknown field": (["train.step=5"], ["'train'", "'steps'"]),
    "unknown name": (["trian.steps=5"], ["'trian'", "'train.steps'"]),
    "wrong type": (["train.steps=ten"], ["train.steps", "'ten'", "int"]),
    "wrong value": (["train.batch_size=0"], ["train.batch_size", "at least 1"]),
    "no binding": (["steps"], ["steps"]),
    "macro that nothing reads": (
        ["learning_rate=1"],
        ["'learning_rate=1'", "%learning_rate", "'cosine.learning_rate'"],
    ),
    "misspelled macro": (["TEXT_FLIE=x"], ["%TEXT_FLIE", "'TEXT_FILE'"]),
    "reference without parentheses": (
        ["experiment.optimizer=@adamw"],
        ["experiment.optimizer = @adamw", "expected @adamw()"],
    ),
    "old name": (["data.bad_share=0.1"], ["data.max_corrupt_fraction"]),
    "an option that XLA does not have": (
        ["train.xla_options=(('xla_cpu_hsat', True),)"],
        ["train.xla_options", "xla_cpu_hsat"],
    ),
    "a value that an option of XLA does not take": (
        ["train.xla_options=(('xla_cpu_enable_fast_math', 'often'),)"],
        ["train.xla_options", "xla_cpu_enable_fast_math", "'often'"],
    ),
    "missing file": (["TEXT_FILE=/no/such.txt"], ["text_files.files", "/no/such.txt"]),
    "unused binding": (["adafactor.clip_norm=1.0"], ["adafactor"]),
    "vocabulary larger than the model's": (
        ["gpt.vocab_size=100"],
        ["gpt.vocab_size", "100", "259"],
    ),
    "batch not divisible by the mesh": (
        ["train.batch_size=12"],
        ["train.batch_size = 12", "mesh.data", "16"],
    ),
    "longer than the positions": (
        ["data.length=64"],
        ["data.length", "64", "gpt.max_length", "32"],
    ),
    "heads not divisible by the mesh": (
        ["mesh.data=2", "mesh.tensor=4"],
        ["mesh.tensor", "4"],
    ),
    "more devices than there are": (["mesh.data=3"], ["mesh", "data=3", "8"]),
    "an axis that nothing uses": (["mesh.stage=2"], ["mesh.stage", "2"]),
    "more masked tokens than are predicted": (
        [
            "experiment.objective=@masked_lm()",
            "masked_lm.model=@bert()",
            "masked_lm.max_predictions=8",
            "bert.transformer=@transformer()",
            "bert.vocab_size=262",
            "bert.max_length=32",
            "data.corruption=@masking()",
            "masking.rate=0.4",
            "bytes.specials=('[CLS]', '[SEP]', '[MASK]')",
        ],
        ["masked_lm.max_predictions = 8", "masking.rate = 0.4", "up to 12 tokens"],
    ),
    "a state larger than all memory": (
        ["transformer.mlp_dim=1000000000"],
        ["GB on each device", "mesh.fsdp"],
    ),
    "warm-up longer than the run": (
        ["train.steps=4"],
        ["cosine.warmup_steps", "train.steps = 4"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_explained(mistake, tiny, tmp_path, capsys):
    from fmjax.cli.main import main

    bindings, named = MISTAKES[mistake]
    run_dir = tmp_path / "run"

    try:
        code = main(["train", *tiny, *bindings, "--run_dir", str(run_dir)])
    except SystemExit as error:  # argparse's own
        code = error.code

    err = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in err
    for name in named:
        assert name in err
    assert not run_dir.exists()


def test_missing_config_suggests_a_shipped_one(tmp_path, verb):
    code, _, err = verb("train", "quickstrat.gin", "--run_dir", tmp_path / "run")

    assert code == 2
    assert "'quickstart.gin'" in err


def test_macro_without_value_is_named(tiny, tmp_path, verb):
    code, _, err = verb("train", tiny[0], "--run_dir", tmp_path / "run")

    assert code == 2
    assert "TEXT_FILE" in err


def test_other_folders_are_left_alone(tiny, tmp_path, verb):
    (tmp_path / "thesis.tex").write_text("mine")

    code, _, err = verb("train", *tiny, "--run_dir", tmp_path)

    assert code == 2
    assert "not empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["eval", "generate", "compare"])
def test_verbs_refuse_what_is_no_run(name, tmp_path, verb):
    more = ["--prompt", "a"] if name == "generate" else []

    code, _, err = verb(name, tmp_path, *more)

    assert code == 2
    assert str(tmp_path) in err


def test_a_sample_of_a_model_that_does_not_write_is_refused(tiny, tmp_path, verb):
    bert = MISTAKES["more masked tokens than are predicted"][0]
    for config, named in (
        ([*tiny, *bert, "masking.rate=0.15"], "sample.prompt = 'a ': @bert()"),
        (
            ["small/coca_digits.gin", "experiment.evaluations=(@sample(),)"],
            "sample.prompt = 'a ': @coca()",
        ),
        (["small/vit_digits.gin"], "does not use 'sample'"),
    ):
        code, _, err = verb(
            "train", *config, "sample.prompt='a '", "--run_dir", tmp_path / "run"
        )

        assert code == 2
        assert named in err
        assert not (tmp_path / "run").exists()


def test_a_process_ends_with_the_message_alone(tiny, tmp_path, fmjax):
    ended = fmjax("train", *tiny, "train.steps=ten", "--run_dir", tmp_path / "run")

    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("fmjax: train.steps = 'ten'")


def test_loss_that_is_not_finite_stops_the_run(tiny, tmp_path, verb):
    code, _, err = verb(
        "train", *tiny, "--run_dir", tmp_path / "run",
        "cosine.learning_rate=1e30", "cosine.warmup_steps=0", "train.steps=20",
        "train.checkpoint_every=1",
    )  # fmt: skip

    assert code == 3
    assert "the loss of step" in err
    assert "The last good step is" in err
    assert "Traceback" not in err


def test_what_only_the_trace_of_a_step_refuses_leaves_no_run(tiny, tmp_path, verb):
    lengths = ("data.length=24", "gpt.max_length=24", "mesh.data=1", "mesh.context=8")

    code, _, err = verb("train", *tiny, "--run_dir", tmp_path / "run", *lengths)

    assert code == 2
    assert "mesh.context = 8: the stack reads sequences of 24; expected" in err
    assert not (tmp_path / "run").exists()


def test_a_step_that_runs_out_of_memory_is_explained(tiny, tmp_path, verb, monkeypatch):
    def step(*args):
        return jnp.ones(1 << 46, jnp.float32).block_until_ready(), {}

    step.trace = lambda *args: None
    monkeypatch.setattr(traced_step, "make_train_step", lambda *args, **options: step)

    code, _, err = verb("train", *tiny, "--run_dir", tmp_path / "run")

    assert code == 2
    assert f"out of memory ({4 << 46} bytes were asked for)" in err
    assert "train.microbatches" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "part", "remedy"),
    [
        (("eval",), "fmjax.evaluation.validation.evaluate", "train.eval_batch_size"),
        (
            ("generate", "--prompt", "a"),
            "fmjax.inference.generate.generate_tokens",
            "max_tokens",
        ),
        (("status",), "fmjax.run.status.status", ""),
    ],
    ids=["eval", "generate", "any other"],
)
def test_a_command_that_runs_out_of_memory_is_explained(
    command, part, remedy, finished, verb, monkeypatch
):
    def exhaust(*args, **kwargs):
        jnp.ones(1 << 46, jnp.float32).block_until_ready()

    monkeypatch.setattr(part, exhaust)
    name, *options = command
    code, _, err = verb(name, finished, *options)

    assert code == 2
    assert f"out of memory ({4 << 46} bytes were asked for)" in err
    assert remedy in err
