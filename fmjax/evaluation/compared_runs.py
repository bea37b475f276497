"""Runs that are compared: their metrics and configs, and which differ by the seed."""

import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fmjax.config.registry import CLASSES
from fmjax.config.render import bindings_of
from fmjax.configurable import fields_of
from fmjax.errors import UserError
from fmjax.objectives.terms import UNITS
from fmjax.run import registry
from fmjax.run.directory import CONFIG, stored_config, stored_experiment
from fmjax.storage.paths import as_path
from fmjax.training.reporting import metrics

SEED = "train.seed"
# What curves can be drawn over.
Over = Literal["steps", "tokens", "images", "pairs", "flops", "seconds"]
OVER: tuple[Over, ...] = ("steps", "tokens", "images", "pairs", "flops", "seconds")


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A run directory that is compared.

    Attributes:
      label: name of the run in tables and legends.
      file: its metrics.jsonl.
      lines: the lines of that file.
      bindings: maps "OWNER.FIELD" to gin text.
      note: why the stored text of the config is compared; "" if it is not.
    """

    label: str
    file: pathlib.Path
    lines: list[dict[str, Any]]
    bindings: dict[str, str]
    note: str = ""

    def split(self, name: str) -> list[dict[str, Any]]:
        """The lines of a split."""
        return [line for line in self.lines if line["split"] == name]

    def series(self, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of a metric; values that were not finite are NaN."""
        lines = [line for line in self.split(split) if metric in line]
        return (
            np.array([line["step"] for line in lines], np.int64),
            np.array([line[metric] for line in lines], np.float64),  # null is NaN
        )

    @property
    def unit(self) -> str:
        """The unit over which the loss is averaged, such as "tokens"."""
        logged = {name for line in self.split("train") for name in line}
        return next((unit for unit in UNITS if unit in logged), "steps")

    @property
    def units_per_step(self) -> float:
        """Mean number of targets of a step."""
        sizes = [line.get(self.unit, 1) for line in self.split("train")]
        return float(np.mean(sizes)) if sizes else math.nan

    @property
    def seconds(self) -> float:
        """Seconds of steps, compilation and evaluations; not of loading and saving."""
        steps, seconds = self._sums("step_seconds")
        spent = float(seconds[-1]) if len(steps) else 0.0
        return spent + sum(x.get("seconds", 0) for x in self.split("validation"))

    def position(self, steps: np.ndarray, over: Over) -> np.ndarray:
        """Where steps are on another axis, from the start of the run.

        Args:
          steps: updates done.
          over: "flops" are those of the model by formula, as in MFU; "seconds" those of
            steps, compilation and the evaluations before.

        Raises:
          UserError: the run counts other units, or has not logged its FLOPs.
        """
        if over == "steps":
            return steps
        if over in UNITS:
            if self.unit != over:
                raise UserError(
                    f"--over {over}: {self.file} counts {self.unit}; expected steps, "
                    f"{self.unit}, flops or seconds."
                )
            return steps * self.units_per_step
        if over == "flops":
            known, sums = self._sums("flops")
            if not len(known):
                raise UserError(
                    f"--over flops: {self.file} has none, as a run of an earlier "
                    "version of fmjax; expected steps, a unit or seconds."
                )
            return np.interp(steps, [0, *known], [0.0, *sums])
        known, sums = self._sums("step_seconds")
        found = np.interp(steps, [0, *known], [0.0, *sums])
        for line in self.split("validation"):
            found = found + np.where(steps > line["step"], line.get("seconds", 0), 0.0)
        return found

    def _sums(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, sums up to them) of a figure that holds for each step of a line."""
        steps, values = self.series("train", name)
        each = np.diff(steps, prepend=0) * np.nan_to_num(values)
        return steps, np.cumsum(each)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs whose configs differ by the seed alone, or a single run.

    Attributes:
      label: in tables and legends.
      runs: one or more.
    """

    label: str
    runs: tuple[ComparedRun, ...]

    @property
    def bindings(self) -> dict[str, str]:
        """Maps "OWNER.FIELD" to gin text; several texts where the runs differ."""
        names = dict.fromkeys(name for run in self.runs for name in run.bindings)
        return {
            name: ", ".join(
                dict.fromkeys(run.bindings.get(name, "—") for run in self.runs)
            )
            for name in names
        }


def read_runs(
    directories: Sequence[str | os.PathLike], trust: bool
) -> tuple[list[ComparedRun], list[str]]:
    """The runs in the given directories, and notes on those that are left out.

    Args:
      directories: run directories, or folders of runs, such as that of a sweep.
      trust: whether the stored configs may import code.

    Raises:
      UserError: a given run directory is none, or has no metrics; or there is no run.
    """
    folders, notes = [], []
    for given in map(as_path, directories):
        inside = [] if (given / CONFIG).is_file() else registry.find_runs(given)
        # A trial that failed at its start.
        begun = [run for run in inside if (run / metrics.FILE).is_file()]
        notes += [f"{run}: left out, as it has no metrics" for run in inside
                  if run not in begun]  # fmt: skip
        folders += begun or [given]
    runs = []
    for folder, label in zip(folders, _labels(folders)):
        bindings, note = _stored_bindings(folder, trust)
        file = folder / metrics.FILE
        try:
            lines = metrics.read(folder)
        except OSError as error:
            raise UserError(
                f"{file} cannot be read: {error.strerror or 'no such file'}; expected "
                "the directory of a trained run."
            ) from None
        if not lines:
            raise UserError(f"{file} is empty: the run has not logged a step yet.")
        runs.append(ComparedRun(label, file, lines, bindings, note))
    return runs, notes


def groups_of(runs: Sequence[ComparedRun]) -> list[Group]:
    """The runs, those together that have equal configs but for different seeds.

    Fields that affect no result may differ too.
    """
    alike: dict[frozenset, list[ComparedRun]] = {}
    for run in runs:
        key = frozenset(
            item
            for item in run.bindings.items()
            if item[0] != SEED and changes_results(item[0])
        )
        alike.setdefault(key, []).append(run)
    groups = []
    for same in alike.values():
        if len({run.bindings.get(SEED) for run in same}) == len(same):
            groups.append(Group(_common_label([run.label for run in same]), (*same,)))
        else:
            groups += [Group(run.label, (run,)) for run in same]
    labels = [group.label for group in groups]
    return [
        group
        if labels.count(group.label) == 1
        else Group(f"{group.runs[0].label} and others", group.runs)
        for group in groups
    ]


def differing(groups: Sequence[Group]) -> list[str]:
    """Names of the bindings that are not equal in all groups.

    The seed is not one of them if there are several in a group.
    """
    of_each = [group.bindings for group in groups]
    names = {name for bindings in of_each for name in bindings}
    if any(len(group.runs) > 1 for group in groups):
        names.discard(SEED)
    return [n for n in sorted(names) if len({b.get(n) for b in of_each}) > 1]


def changes_results(binding: str) -> bool:
    """Whether a binding affects what a run computes or which data it reads."""
    owner, field = binding.rsplit("/", 1)[-1].split(".")
    if owner not in CLASSES:
        return True
    metadata = {f.name: f.metadata for f in fields_of(CLASSES[owner])}.get(field, {})
    # Paths of datasets matter; folders of caches do not.
    if metadata.get("path"):
        return owner not in ("data", "images", "train")
    return not metadata.get("runtime")


def _labels(folders: list[pathlib.Path]) -> list[str]:
    """The shortest ends of the paths that distinguish the folders."""
    longest = max((len(folder.parts) for folder in folders), default=0)
    labels: list[str] = []
    for count in range(1, longest + 1):
        labels = ["/".join(folder.parts[-count:]) for folder in folders]
        if len({*labels}) == len({*folders}):
            break
    return labels


def _common_label(labels: list[str]) -> str:
    """What the labels of seeds have in common, without "seed=" at its end."""
    if len(labels) == 1:
        return labels[0]
    alike = itertools.takewhile(lambda letters: len({*letters}) == 1, zip(*labels))
    common = "".join(letters[0] for letters in alike)
    common = re.sub(r"[\W_]*(?:seed[\W_]*\d*)?[\W_]*$", "", common)
    return common or f"{labels[0]} and {len(labels) - 1} more"


def _stored_bindings(folder: pathlib.Path, trust: bool) -> tuple[dict[str, str], str]:
    """(bindings of a run, note why only the stored text is compared or '').

    Raises:
      UserError: the folder is not a run directory.
    """
    stored = stored_config(folder)
    note = ""
    try:
        bindings = bindings_of(stored_experiment(folder, trust))
    except UserError as error:
        # The run imports code, or is of a version that is too old or too new.
        note = f"{folder}: the stored text of the config is compared: {error}"
        bindings = stored.bindings
    return {".".join(key): value for key, value in bindings.items()}, note
