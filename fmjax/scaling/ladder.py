"""A ladder: runs of several sizes and lengths, a prediction, and the run it is of.

FOLDER/runs/SIZE-STEPS/    a run directory each, and target/
FOLDER/configs/NAME.gin    the whole config of each, which stays the same
FOLDER/logs/               what they printed
FOLDER/points.csv          the results of the sizes, as `fmjax scaling fit` reads them
FOLDER/law.json            the law fitted to them
FOLDER/prediction.json     of the target's loss, written before it is trained
FOLDER/grade.json          how the target came out
FOLDER/ladder.png          all of it
"""

import csv
import dataclasses
import io
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax.config.load import load_experiment, load_stored
from fmjax.config.render import differences, render
from fmjax.errors import UserError, suggest
from fmjax.run.fork import fork
from fmjax.scaling.fit import Fit, check_determined, fit_law, interval, log_losses
from fmjax.scaling.forms import FORMS
from fmjax.scaling.ladder_config import LadderConfig
from fmjax.scaling.laws import LossLaw
from fmjax.scaling.points import Points, read_points
from fmjax.scaling.trunk import branch_steps
from fmjax.storage import objects
from fmjax.sweeps.sweep import find_config
from fmjax.sweeps.trial_run import COMMAND, TrialRun
from fmjax.training.experiment import Experiment
from fmjax.training.parametrize import resolve
from fmjax.training.reporting import events, metrics
from fmjax.training.state import abstract_variables

POINTS, LAW = "points.csv", "law.json"
PREDICTION, GRADE = "prediction.json", "grade.json"
PICTURE, TARGET = "ladder.png", "target"
_METRIC = "loss"
_POLL_SECONDS = 0.2
_STOP_SECONDS = 120.0
_SEED = 0  # of the resampling


class Rung(NamedTuple):
    """One run of the ladder.

    Attributes:
      name: of its run directory.
      steps: its length.
      parameters: N of its model.
      bindings: NAME=VALUE, without those of all runs.
      trunk: name of the run that it continues; None for none.
      branch: step of the trunk's checkpoint; None likewise.
    """

    name: str
    steps: int
    parameters: int
    bindings: tuple[str, ...]
    trunk: str | None = None
    branch: int | None = None


@dataclasses.dataclass(frozen=True)
class Grade:
    """How the loss that was predicted came out.

    Attributes:
      predicted: nats a token.
      low: end of its 95% interval.
      high: the other.
      measured: loss of the run.
    """

    predicted: float
    low: float
    high: float
    measured: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return (self.predicted - self.measured) / self.measured

    @property
    def inside(self) -> bool:
        """Whether the loss was in the interval."""
        return self.low <= self.measured <= self.high


class Ladder:
    """A ladder in its folder; what is there is continued.

    Args:
      config: of the ladder.
      folder: its folder, on a file system.
      near: folder in which the runs' config is looked up first.
      say: called with each line of what happened.
      trust: whether the runs' config may import code.
      command: that runs fmjax.

    Raises:
      UserError: the config or a size does not fit; raised before anything is trained.
    """

    def __init__(
        self,
        config: LadderConfig,
        folder: pathlib.Path,
        near: pathlib.Path,
        say: Callable[[str], None],
        trust: bool = False,
        command: Sequence[str] = COMMAND,
    ):
        self.config, self.folder, self._say = config, folder, say
        self._trust, self._command = trust, command
        self._file = str(find_config(config.config, near, "ladder.config"))
        self._every, self.rungs, self._experiments = 0, [], {}
        for name, bindings in config.sizes.items():
            self.rungs += self._rungs_of(name, bindings)
        _check_law(config.law, self.rungs)
        target = self._experiment(config.target, config.target_steps)
        self.target = Rung(
            TARGET, config.target_steps, _parameters(target), config.target
        )
        self._experiments[TARGET] = target

    def run(self) -> Grade:
        """Trains the sizes, predicts the target's loss, trains it and grades.

        Raises:
          UserError: a run failed, the config of one that is there differs, or the
            prediction is of other runs than these.
        """
        self._check_configs()
        self._train([rung for rung in self.rungs if rung.trunk is None])
        self._train([rung for rung in self.rungs if rung.trunk is not None])
        points = self._points()
        prediction = self._predict(points)
        self._train([self.target])
        measured, tokens = self._result(self.target)
        grade = Grade(*(prediction[x] for x in ("loss", "low", "high")), measured)
        found = dataclasses.asdict(grade) | {
            "error": grade.error,
            "inside": grade.inside,
            "parameters": self.target.parameters,
            "tokens": tokens,
        }
        _write(self.folder / GRADE, json.dumps(found, indent=2) + "\n")
        return grade

    def _rungs_of(self, name: str, bindings: tuple[str, ...]) -> list[Rung]:
        longest = self.config.steps[-1]
        experiment = self._experiment(bindings, longest)
        size = _parameters(experiment)
        self._every, branches = branch_steps(
            experiment.optimizer.schedule, self.config.steps
        )
        trunk = f"{name}-{longest}"
        shorter = [
            Rung(f"{name}-{steps}", steps, size, bindings, trunk, branch)
            for steps, branch in zip(self.config.steps, branches)
        ]
        found = [Rung(trunk, longest, size, bindings), *shorter]
        for rung in found:
            self._experiments[rung.name] = self._experiment(bindings, rung.steps)
        return found

    def _check_configs(self) -> None:
        """Stores the config of each run, or compares it with the stored one."""
        for name, experiment in self._experiments.items():
            file = self.folder / "configs" / f"{name}.gin"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                _write(file, render(experiment))
                continue
            before = load_stored(file, trust=self._trust or bool(experiment.modules))
            if changed := differences(before, experiment, runtime=False):
                table = "\n".join(
                    f"  {field}: {was or '(absent)'} → {now or '(absent)'}"
                    for field, was, now in changed
                )
                raise UserError(
                    f"{self.folder} holds {name} with a different config:\n{table}\n"
                    "Use another --folder, or change it back."
                )

    def _experiment(self, bindings: tuple[str, ...], steps: int) -> Experiment:
        every = [*self.config.bindings, *bindings, f"train.steps={steps}"]
        experiment = load_experiment(self._file, every, self._trust)
        if experiment.optimizer is None or experiment.data is None:
            raise UserError(
                f"{self._file}: expected a config that trains, with an optimizer and "
                "data."
            )
        return resolve(experiment)

    def _train(self, rungs: list[Rung]) -> None:
        """Trains runs, some at a time, to their ends."""
        waiting = [rung for rung in rungs if not self._is_finished(rung)]
        running = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.config.at_once:
                    rung = waiting.pop(0)
                    running[rung.name] = rung, self._start(rung)
                for name, (rung, run) in list(running.items()):
                    if (code := run.poll()) is not None:
                        del running[name]
                        self._end(rung, run.result(code))
                time.sleep(_POLL_SECONDS)
        finally:
            # What is unfinished goes on when the ladder is started again.
            for _, run in running.values():
                run.tell_to_stop()
            for _, run in running.values():
                run.end(_STOP_SECONDS)

    def _is_finished(self, rung: Rung) -> bool:
        return any(
            event["kind"] == "finished" and event["step"] == rung.steps
            for event in events.read(self._place(rung.name))
        )

    def _start(self, rung: Rung) -> TrialRun:
        place, options = self._place(rung.name), [f"train.steps={rung.steps}"]
        if rung.trunk is not None:
            if not place.exists():
                fork(self._place(rung.trunk), place, rung.branch)
            options.append("--override")
        elif rung is not self.target:
            every = f"{self._every}"
            options += [f"train.checkpoint_every={every}", f"train.keep_every={every}"]
        if self._trust:
            options.append("--trust")
        of_all = (*self.config.bindings, *rung.bindings)
        log = self.folder / "logs" / f"{rung.name}.log"
        run = TrialRun(
            [self._file, *of_all, *options], place, log, _METRIC, {}, self._command
        )
        run.poll()
        self._say(f"{rung.name}: {rung.steps:,} steps, {rung.parameters:,} parameters")
        return run

    def _end(self, rung: Rung, result: dict[str, Any]) -> None:
        if result["error"]:
            raise UserError(
                f"{rung.name} failed: {result['error']} (all it printed: "
                f"{self.folder / 'logs' / rung.name}.log). The same command continues "
                "the ladder."
            )
        self._say(f"{rung.name}: loss {result['value']:.4f}")

    def _place(self, name: str) -> pathlib.Path:
        return self.folder / "runs" / name

    def _result(self, rung: Rung) -> tuple[float, float]:
        """(loss of the last validation, tokens that were trained on) of a run."""
        lines = metrics.read(self._place(rung.name))
        last = [line for line in lines if line["split"] == "validation"][-1]
        seen = [line for line in lines if line["split"] == "train"][-1]
        return last[_METRIC], seen["tokens_seen"]

    def _points(self) -> Points:
        """The results of the sizes, also written to a file."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("run", "steps", "parameters", "tokens", "loss"))
        for rung in self.rungs:
            loss, tokens = self._result(rung)
            writer.writerow(
                (rung.name, rung.steps, rung.parameters, int(tokens), f"{loss:.6f}")
            )
        _write(self.folder / POINTS, text.getvalue())
        return read_points(self.folder / POINTS)

    def _predict(self, points: Points) -> dict[str, Any]:
        """The prediction of the target's loss, made once and before it is trained.

        The interval is that of resampled laws, with the distance of a run from its law
        drawn from those of the points.
        """
        from fmjax.scaling.law_files import write_fit

        file = self.folder / PREDICTION
        rates = points.tokens / [rung.steps for rung in self.rungs]
        tokens = float(np.median(rates)) * self.target.steps
        of = {"points": _rows(points), "parameters": self.target.parameters}
        of |= {"steps": self.target.steps, "law": self.config.law}
        if (content := objects.read_or_none(file)) is not None:
            before = json.loads(content)
            if before["of"] != of:
                raise UserError(
                    f"{file} was made from other runs, or of another target; expected "
                    "those of before. Use another folder for another ladder."
                )
            return before
        if (self._place(TARGET) / metrics.FILE).exists():
            raise UserError(
                f"{self._place(TARGET)} was trained before its loss was predicted; "
                "remove it, or use another folder."
            )
        fit = fit_law(self.config.law, points, self.config.bootstrap, _SEED)
        write_fit(fit, self.folder / LAW)
        loss, low, high = predicted(fit, points, self.target.parameters, tokens)
        found = {"loss": loss, "low": low, "high": high, "tokens": tokens}
        found |= {"time": time.time(), "of": of}
        _write(file, json.dumps(found, indent=2) + "\n")
        self._say(f"predicted loss of the target: {loss:.4f} ({low:.4f} to {high:.4f})")
        return found


def predicted(
    fit: Fit, points: Points, parameters: float, tokens: float
) -> tuple[float, float, float]:
    """The loss of a run by a law, with the 95% interval of a single run.

    Args:
      fit: with resampled laws.
      points: that it was fitted to; how far these are from the law is the noise of a
        single run.
      parameters: N of the run.
      tokens: D.

    Returns:
      (loss, lowest, highest), nats a token.
    """
    assert isinstance(fit.law, LossLaw)
    residuals = np.log(points.loss) - log_losses(fit.law, points)
    # Residuals are smaller than the noise where many parameters fit few points.
    free = max(1, len(points) - len(dataclasses.fields(fit.law)))
    residuals = residuals * math.sqrt(len(points) / free)
    drawn = np.random.default_rng(_SEED).choice(residuals, len(fit.samples))
    losses = [float(law.loss(parameters, tokens)) for law in fit.samples]
    return (
        float(fit.law.loss(parameters, tokens)),
        *interval(np.array(losses) * np.exp(drawn)),
    )


def _check_law(law: str, rungs: Sequence[Rung]) -> None:
    """Raises a UserError if no results of these runs would determine the law."""
    if law not in FORMS:
        raise UserError(
            f"ladder.law = {law!r}: expected one of {', '.join(FORMS)}."
            f"{suggest(law, FORMS)}"
        )
    sizes = np.array([rung.parameters for rung in rungs], float)
    lengths = np.array([rung.steps for rung in rungs], float)
    try:
        # Tokens are in proportion to the steps.
        check_determined(law, Points(sizes, lengths, np.ones(len(rungs))))
    except UserError as error:
        raise UserError(f"ladder.sizes and ladder.steps: {error}") from None


def _parameters(experiment: Experiment) -> int:
    import jax

    _, shapes = abstract_variables(experiment.objective)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def _rows(points: Points) -> list[list[float]]:
    return np.stack([points.parameters, points.tokens, points.loss], 1).tolist()


def _write(file: pathlib.Path, text: str) -> None:
    objects.write(file, text.encode(), sync=True)
