"""Reporting to MLflow, which the extra `[mlflow]` installs."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError
from fmjax.training.reporting.trackers.tracker import check_installed

FILE = "mlflow_run_id"
_URI = "MLFLOW_TRACKING_URI"
# Limits of MLflow's servers, in a call and in a value.
_METRICS, _PARAMS, _CHARACTERS = 1000, 100, 6000
_BINDING = re.compile(r"^([\w/.]+) = (.*)$", re.MULTILINE)


@configurable("mlflow")
@dataclasses.dataclass(frozen=True)
class MLflow:
    """Reports metrics to MLflow, and the config as parameters of its run.

    A run that resumes continues the same run there. MLflow deletes no metric: of a step
    that was done again, after a kill or a rollback, it keeps both values, and the one
    with the later timestamp counts.

    Attributes:
      uri: of the server or store, such as "http://mlflow:5000"; None for that of
        MLFLOW_TRACKING_URI in the environment. It is stored in config.gin: a user and
        password belong into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. A
        database (sqlite:///…) needs all of the package mlflow.
      experiment: name of the experiment there; made if there is none.
    """

    uri: str | None = runtime_field(None)
    experiment: str = runtime_field("fmjax")

    def check(self) -> None:
        """Raises a UserError without the package, or without a store to use."""
        check_installed(self, "mlflow", "mlflow")
        uri = self._uri
        if not uri:
            raise UserError(
                f"mlflow.uri = {self.uri!r}: expected that of a server or store, or "
                f"{_URI} in the environment."
            )
        if urlsplit(uri).scheme not in ("", "file", "sqlite"):
            return  # The thread finds out: it may take long.
        try:
            self._client()
        except Exception as error:
            raise UserError(f"mlflow.uri = {uri!r}: {error}") from error

    def connect(self, run_dir: pathlib.Path, config: str) -> "_Connection":
        """Starts a run there, or continues that of the run directory."""
        client, file = self._client(), run_dir / FILE
        if file.exists():
            run_id = file.read_text().strip()
            client.update_run(run_id, status="RUNNING")
        else:
            found = client.get_experiment_by_name(self.experiment)
            folder = found.experiment_id if found else None
            folder = folder or client.create_experiment(self.experiment)
            run_id = client.create_run(folder, run_name=run_dir.name).info.run_id
            file.write_text(run_id)
        if not client.get_run(run_id).data.params:
            _log_params(client, run_id, config)
        return _Connection(client, run_id)

    @property
    def _uri(self) -> str | None:
        return self.uri or os.environ.get(_URI)

    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self._uri)


class _Connection:
    def __init__(self, client, run_id: str):
        self._client, self._run_id = client, run_id

    def log(self, step: int, figures: Mapping[str, float], at: float) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(_name(name), value, int(1000 * at), step)
            for name, value in figures.items()
        ]
        for i in range(0, len(metrics), _METRICS):
            self._client.log_batch(self._run_id, metrics=metrics[i : i + _METRICS])

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def _log_params(client, run_id: str, config: str) -> None:
    """Stores every binding of a config, which a gin text has one a line."""
    from mlflow.entities import Param

    params = [
        Param(_name(name), value[:_CHARACTERS])
        for name, value in _BINDING.findall(config)
    ]
    for i in range(0, len(params), _PARAMS):
        client.log_batch(run_id, params=params[i : i + _PARAMS])


def _name(name: str) -> str:
    """A name with the characters that MLflow accepts."""
    return re.sub(r"[^\w\-. :/]", "_", name)
