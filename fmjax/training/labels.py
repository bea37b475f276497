"""The classes of objectives that predict labels: those of the data."""

import dataclasses

from fmjax.objectives.class_loss import NamesClasses
from fmjax.objectives.label_objective import LabelObjective
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.training.experiment import Experiment


def with_labels(experiment: Experiment) -> Experiment:
    """The experiment with the names of its classes, and a head for each of them.

    The head of a model that binds no number of classes gets that of the data, one class
    if labels are numbers; an encoder-decoder that writes labels as text needs none.
    Experiments of other objectives are returned as they are, and so are those whose
    data does not name its classes.
    """
    objective, data = experiment.objective, experiment.data
    predicts = isinstance(objective, LabelObjective | Seq2SeqLM)
    if not predicts or not isinstance(data, NamesClasses):
        return experiment
    names = data.class_names()
    if isinstance(objective, LabelObjective) and objective.classes is None:
        head = {objective.classes_field: len(names) or 1}
        objective = dataclasses.replace(objective, model=objective.model.clone(**head))
    return dataclasses.replace(experiment, objective=objective, labels=names)


def writes_labels(experiment: Experiment) -> bool:
    """Whether the model is an encoder-decoder that writes the names of its classes.

    Labels of an imported model, which has no data, are those of a head.
    """
    is_writer = isinstance(experiment.objective, Seq2SeqLM)
    return is_writer and experiment.data is not None and bool(experiment.labels)
