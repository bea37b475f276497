"""What is said of a cache's build: how far, how fast, how long."""

import time

import pytest

from fmjax.data.runtime.build_progress import build_progress, text_progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_the_rate_and_the_remaining_time(clock, capsys):
    with build_progress("caching", 400_000_000) as update:
        clock[0] += 5
        update(10_000_000, 1000)  # too early for another line
        clock[0] += 15
        update(100_000_000, 50_000)
        clock[0] += 20
        update(450_000_000, 200_000)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "caching"
    assert second == (
        "caching: 100 of about 400 MB, 5.0 MB/s, 2,500 examples/s, about 1:00 left"
    )
    # The estimate was too low.
    assert third.startswith("caching: 450 of about 450 MB, 11.2 MB/s, 5,000 examples/s")
    assert third.endswith("about 0:00 left")


def test_what_earlier_processes_have_done_is_no_rate(clock, capsys):
    with build_progress("caching", 8_000_000_000, (2_000_000_000, 4_000)) as update:
        clock[0] += 10
        update(2_010_000_000, 4_100)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        "caching: 2,010 of about 8,000 MB, 1.0 MB/s, 10 examples/s, about 1:39:50 left"
    )


def test_without_a_size_there_is_no_remaining_time(clock, capsys):
    with build_progress("caching", None) as update:
        clock[0] += 10
        update(50_000_000, 500)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "caching: 50 MB, 5.0 MB/s, 50 examples/s"


def test_texts_that_take_long_are_counted_one_by_one(clock, capsys):
    with text_progress("translating", 6_000, 1_000) as update:
        clock[0] += 20
        update(1_050)
    line = capsys.readouterr().err.splitlines()[-1]
    rest = "1,050 of 6,000 texts, 2.5 texts/s, about 33:00 left"
    assert line == f"translating: {rest}"
