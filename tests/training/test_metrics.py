"""metrics.jsonl survives interruptions, and throughput follows its formula."""

import errno
import json
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fmjax.training.reporting import metrics, throughput


def test_lines_past_a_resume_and_half_lines_are_dropped(tmp_path):
    lines = [json.dumps({"step": s, "split": "train", "loss": 1.0}) for s in range(5)]
    (tmp_path / metrics.FILE).write_text("\n".join(lines) + '\n{"step": 5, "spl')
    writer = metrics.MetricWriter(tmp_path, start=2)
    before = time.time()
    writer.write(3, "train", {"loss": 9.0, "mfu": None, "grad_norm": float("nan")})
    writer.close()
    found = metrics.read(tmp_path)
    assert [line["step"] for line in found] == [0, 1, 2, 3]
    assert before - 1 < found[-1].pop("time") < time.time() + 1
    assert found[-1] == {
        "step": 3,
        "split": "train",
        "loss": 9.0,
        "mfu": None,
        "grad_norm": None,
    }
    assert metrics.read(tmp_path, "validation") == []


def test_texts_past_a_resume_are_dropped(tmp_path):
    writer = metrics.MetricWriter(tmp_path, start=0)
    for step in (2, 4):
        writer.write_text(step, "sample", f"at {step}\n")
    writer.close()
    writer = metrics.MetricWriter(tmp_path, start=3)
    writer.write_text(5, "sample", "ä\u2028")
    writer.close()

    found = metrics.read_texts(tmp_path)

    texts = [(line["step"], line["name"], line["text"]) for line in found]
    assert texts == [(2, "sample", "at 2\n"), (5, "sample", "ä\u2028")]


def test_lines_wait_for_a_disk_that_is_full(tmp_path):
    writer = metrics.MetricWriter(tmp_path, start=0)
    file = writer._file
    writer._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    error = writer.write(1, "train", {"loss": 1.0})
    assert error.errno == errno.ENOSPC
    writer._file.close()
    writer._file = file
    assert writer.write(2, "train", {"loss": 2.0}) is None
    assert writer.close() is None
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2]


def test_tensorboard_events_are_readable(tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    writer = metrics.MetricWriter(tmp_path, start=0)
    writer.write(10, "train", {"loss": 2.5})
    writer.close()
    events = reader.EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Scalars("train/loss")
    assert (event.step, event.value) == (10, 2.5)


def test_mfu_of_palm():
    # PaLM 540B: 238.3k tokens/s on 6,144 TPU v4 are 46.2% (Chowdhery et al. 2022,
    # table 3): 118 layers, 48 heads of 256, sequences of 2,048.
    v4 = SimpleNamespace(device_kind="TPU v4")
    flops = 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048
    share = throughput.mfu(238.3e3 * flops, v4, 6144)
    np.testing.assert_allclose(share, 0.462, atol=0.001)


def test_unknown_chips_have_no_mfu():
    assert throughput.mfu(1e15, jax.devices()[0]) is None
    told = throughput.describe_peak(SimpleNamespace(device_kind="TPU v99"))
    assert told == "MFU is not known: no peak of a 'TPU v99' is"


def test_the_peak_of_a_chip_is_told_with_its_source():
    told = throughput.describe_peak(SimpleNamespace(device_kind="TPU v5 lite"))
    assert told.startswith("MFU is of 197 TFLOP/s a device (cloud.google.com/tpu/docs")
    pcie = throughput.describe_peak(SimpleNamespace(device_kind="NVIDIA H100 PCIe"))
    assert pcie == "MFU is of 756 TFLOP/s a device (NVIDIA H100 PCIe data sheet)"
