"""A part of an experiment of the wrong kind is refused by name before it is used."""

import dataclasses

import pytest

import fmjax
from fmjax.config.load import load_experiment
from fmjax.configurable import configurable, fields_of
from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.schedules import Cosine
from fmjax.sharding.mesh import MeshConfig

MODEL = GPT(TransformerConfig(1, 8, 2), vocab_size=8, max_length=8)
SCHEDULE = Cosine(learning_rate=1e-3)


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("experiment.optimizer=@cosine()", "@adamw()"),
        ("experiment.objective=@gpt()", "@causal_lm()"),
        ("experiment.objective=@adamw()", "@causal_lm()"),
        ("experiment.data=@gpt()", "@images()"),
        ("experiment.mesh=@adamw()", "@mesh()"),
        ("adamw.schedule=@gpt()", "@cosine()"),
        ("causal_lm.model=@vit();vit.transformer=@transformer()", "predicts tokens"),
    ],
)
def test_a_part_of_another_kind_is_refused(binding, expected):
    binding, *others = binding.split(";")
    field, found = binding.split("=")
    with pytest.raises(UserError) as error:
        load_experiment("quickstart.gin", [binding, *others])
    for part in (f"{field} = {found}", "expected", expected):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: fmjax.Experiment(CausalLM(MODEL), optimizer=SCHEDULE),
            "experiment.optimizer = @cosine(): expected @adafactor() or @adamw()",
        ),
        (lambda: fmjax.Experiment(MODEL), "experiment.objective = @gpt"),
        (
            lambda: dataclasses.replace(fmjax.Experiment(CausalLM(MODEL)), mesh="2"),
            "experiment.mesh = '2': expected @mesh(), found str",
        ),
        (lambda: AdamW(schedule=MODEL), "adamw.schedule = @gpt"),
        (lambda: MODEL.clone(vocab_size="8"), "gpt.vocab_size = '8': expected int"),
        (lambda: MeshConfig(True), "mesh.data = True: expected int, found bool"),
    ],
)
def test_parts_made_in_python_are_refused_alike(make, told):
    with pytest.raises(UserError) as error:
        make()
    assert told in str(error.value)


def test_only_of_linen_modules_a_name_is_no_field():
    @configurable("named")
    @dataclasses.dataclass(frozen=True)
    class Named:
        name: str = "a"

        def apply(self):
            """As linen modules have it."""

    assert [field.name for field in fields_of(Named)] == ["name"]
    assert not {"name", "parent"} & {field.name for field in fields_of(GPT)}
