"""A page of metrics for Prometheus, served from a thread."""

import dataclasses
import pathlib
import socket
from collections.abc import Iterator, Mapping

from prometheus_client import start_http_server
from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from fmjax.configurable import configurable, runtime_field
from fmjax.errors import UserError, require
from fmjax.objectives.terms import UNITS


@configurable("prometheus")
@dataclasses.dataclass(frozen=True)
class Prometheus:
    """Serves the metrics of the last lines at http://HOST:PORT/metrics.

    Gauges are called as in metrics.jsonl, such as `fmjax_train_loss` and
    `fmjax_validation_loss`; norms of modules are `fmjax_train_module_grad_norm`, … with
    the label `module`. Counters are
    `fmjax_steps_total` and `fmjax_tokens_total` (or images, pairs): updates and targets
    since the run began. `fmjax_logged_timestamp_seconds` is when the last line was
    written. All have the label `run`, the name of the run directory.

    Attributes:
      port: that the first process of the run listens on.
      address: of the interface that it listens on; "0.0.0.0" for all.
    """

    port: int = runtime_field(9464)  # as OpenTelemetry's exporters for Prometheus
    address: str = runtime_field("0.0.0.0")

    def __post_init__(self):
        """Raises UserError for values out of bounds."""
        require(self, "port", 0 < self.port < 2**16, "1 to 65535")

    def check(self) -> None:
        """Raises a UserError if the port is taken."""
        try:
            socket.create_server((self.address, self.port)).close()
        except OSError as error:
            raise UserError(
                f"prometheus.port = {self.port}: cannot listen on {self.address}: "
                f"{error.strerror}. Expected a port that is free."
            ) from error

    def connect(self, run_dir: pathlib.Path, config: str) -> "_Page":
        """Starts to serve."""
        page, registry = _Page(run_dir.name), CollectorRegistry()
        registry.register(page)
        page.server, _ = start_http_server(self.port, self.address, registry)
        return page


class _Page(Collector):
    """What a scrape gets; another thread calls `collect`."""

    def __init__(self, run: str):
        self._run, self._last = run, (0, 0.0)
        self._figures: dict[str, float] = {}
        self.server = None

    def log(self, step: int, figures: Mapping[str, float], at: float) -> None:
        # Replaced as a whole, as a scrape may read it at any time; what a split had
        # before and is not known now is left out.
        splits = {name.partition("/")[0] for name in figures}
        kept = {
            name: value
            for name, value in self._figures.items()
            if name.partition("/")[0] not in splits
        }
        self._figures, self._last = {**kept, **figures}, (step, at)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def collect(self) -> Iterator[Metric]:
        """The families of metrics, as Prometheus's client asks for them."""
        figures, (step, at) = self._figures, self._last
        yield self._counter("steps", "Updates done.", step)
        for unit in UNITS:
            if (seen := figures.get(f"train/{unit}_seen")) is not None:
                told = f"Targets ({unit}) since the run began."
                yield self._counter(unit, told, seen)
        stamp = GaugeMetricFamily(
            "fmjax_logged_timestamp_seconds",
            "When the last line of metrics was written, in seconds since 1970.",
            labels=["run"],
        )
        stamp.add_metric([self._run], at)
        yield stamp
        gauges: dict[str, GaugeMetricFamily] = {}
        for name, value in figures.items():
            split, kind, *module = name.split("/", 2)
            # Not the norm of the whole gradient, which is no module's.
            name = f"fmjax_{split}_{'module_' if module else ''}{kind}"
            if name not in gauges:
                told = f"{kind} of {split} lines, as in metrics.jsonl."
                labels = ["run", "module"] if module else ["run"]
                gauges[name] = GaugeMetricFamily(name, told, labels=labels)
            gauges[name].add_metric([self._run, *module], value)
        yield from gauges.values()

    def _counter(self, name: str, told: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(f"fmjax_{name}", told, labels=["run"])
        family.add_metric([self._run], value)
        return family
