"""The classes of objectives that predict labels: those of the data."""

import dataclasses

from fmjax.objectives.class_loss import NamesClasses
from fmjax.objectives.label_objective import LabelObjective
from fmjax.training.experiment import Experiment


def with_labels(experiment: Experiment) -> Experiment:
    """The experiment with the names of its classes, and a head for each of them.

    The head of a model that binds no number of classes gets that of the data, one class
    if labels are numbers. Experiments of other objectives are returned as they are, and
    so are those whose data does not name its classes.
    """
    objective, data = experiment.objective, experiment.data
    if not isinstance(objective, LabelObjective) or not isinstance(data, NamesClasses):
        return experiment
    names = data.class_names()
    if objective.classes is None:
        head = {objective.classes_field: len(names) or 1}
        objective = dataclasses.replace(objective, model=objective.model.clone(**head))
    return dataclasses.replace(experiment, objective=objective, labels=names)
