"""A part of an experiment of the wrong kind is refused by name before it is used."""

import pytest

from fmjax.config.load import load_experiment
from fmjax.errors import UserError


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
