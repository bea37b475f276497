"""The contract of `experiment.data`, which is checked when an experiment is built."""

import dataclasses

import numpy as np
import pytest

from fmjax.config.construct import construct
from fmjax.config.load import load_experiment
from fmjax.configurable import configurable
from fmjax.data.images.image_data import ImageData
from fmjax.data.runtime.batch_source import BatchSource
from fmjax.data.sources.digits import Digits
from fmjax.data.sources.stdlib import PythonStdlib
from fmjax.data.tasks.image_task import ImageTask
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError
from fmjax.training.experiment import Experiment


@configurable("counting")
@dataclasses.dataclass(frozen=True)
class Counting:
    """Somebody's own source of batches."""

    has_validation = False

    def tokenizer(self):
        return None

    def prepare(self):
        pass

    def wait_until_prepared(self, timeout_seconds=3600):
        pass

    def row_shapes(self):
        return {"tokens": (4,)}

    def row_dtypes(self):
        return {"tokens": np.dtype(np.int32)}

    def train_batches(self, batch_size, rows, seed):
        return iter([{"tokens": np.zeros((len(rows), 4), np.int32)}])

    def eval_batches(self, batch_size, rows, max_batches=None, split="validation"):
        return iter(())

    def train_rows(self):
        return None

    def target_counts(self):
        return None

    def fingerprint(self):
        return "counting"


@configurable("unfinished")
@dataclasses.dataclass(frozen=True)
class Unfinished:
    """Lacks most of it."""

    def prepare(self):
        pass


def experiment_of(data):
    objective = load_experiment("quickstart.gin").objective
    return construct(Experiment, {"objective": objective, "data": data})


@pytest.mark.parametrize(
    "data",
    [
        Data(TextTask(PythonStdlib(), Bytes())),
        ImageData(ImageTask(Digits())),
        Counting(),
    ],
    ids=lambda data: data.gin_name,
)
def test_sources_of_batches_are_taken(data):
    assert experiment_of(data).data is data


def test_every_method_of_the_contract_is_needed():
    methods = {name for name in vars(BatchSource) if not name.startswith("_")}
    methods -= {"has_validation", "gin_name"}
    assert len(methods) == 10
    for name in methods:
        rest = {n: m for n, m in vars(Counting).items() if n in methods - {name}}
        lacking = type("Lacking", (), rest | {"gin_name": "lacking"})
        with pytest.raises(UserError, match=r"experiment\.data"):
            experiment_of(lacking())


def test_what_gives_no_batches_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"experiment\.data = .*expected @data\(\)"):
        experiment_of(Unfinished())


@pytest.mark.parametrize(
    ("given", "missing"),
    [({"observe_every": 3}, "observe"), ({"observe": print}, "observe_every")],
)
def test_a_source_that_observes_parameters_has_both_members(given, missing):
    half = type("Half", (Counting,), given | {"gin_name": "half"})
    with pytest.raises(UserError, match=rf"@half\(\) has no {missing}; expected both"):
        experiment_of(half())
