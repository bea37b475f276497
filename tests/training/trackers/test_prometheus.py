"""The page for Prometheus, scraped over HTTP and read by its own parser."""

import contextlib
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fmjax.errors import UserError
from fmjax.training.reporting.trackers.prometheus import Prometheus


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def served(port, run_dir):
    page = Prometheus(port, "127.0.0.1").connect(run_dir, "config")
    yield page
    page.close()


def scrape(port):
    """Maps (name, module) to (value, kind); every sample has the label of the run."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            assert labels["run"] == "my run"
            found[name, labels.get("module")] = (value, family.type)
    return found


def test_a_scrape_gets_the_figures_of_the_last_lines(port, tmp_path):
    with served(port, tmp_path / "my run") as page:
        assert scrape(port)["fmjax_steps_total", None] == (0, "counter")
        page.log(5, {"validation/loss": 4.0}, at=10.0)
        page.log(9, {"train/loss": 1.0, "train/grad_norm": 7.0}, at=11.0)
        figures = {
            "train/loss": 2.5,
            "train/tokens_seen": 640.0,
            "train/grad_norm/stack/layers/mlp": 0.5,
            "train/grad_norm/tokens": 0.25,
        }
        page.log(10, figures, at=12.0)
        assert scrape(port) == {
            ("fmjax_steps_total", None): (10, "counter"),
            ("fmjax_tokens_total", None): (640, "counter"),
            ("fmjax_logged_timestamp_seconds", None): (12, "gauge"),
            ("fmjax_validation_loss", None): (4, "gauge"),
            ("fmjax_train_loss", None): (2.5, "gauge"),
            ("fmjax_train_tokens_seen", None): (640, "gauge"),
            ("fmjax_train_module_grad_norm", "stack/layers/mlp"): (0.5, "gauge"),
            ("fmjax_train_module_grad_norm", "tokens"): (0.25, "gauge"),
        }
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_a_port_that_is_taken_is_refused_by_name(port):
    Prometheus(port, "127.0.0.1").check()
    with socket.create_server(("127.0.0.1", port)):
        match = rf"prometheus\.port = {port}: cannot listen on 127\.0\.0\.1"
        with pytest.raises(UserError, match=match):
            Prometheus(port, "127.0.0.1").check()
    with pytest.raises(UserError, match=r"prometheus\.port = 0: expected 1 to 65535"):
        Prometheus(0)
