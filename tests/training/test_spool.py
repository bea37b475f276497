"""Reports of a run in a bucket: uploaded whole, continued, and kept if refused."""

import pathlib

import pytest

from fmjax.storage import objects
from fmjax.storage.paths import as_path
from fmjax.training.reporting import events, metrics, spool
from fmjax.training.reporting.events import Events
from fmjax.training.reporting.metrics import MetricWriter
from fmjax.training.reporting.spool import Spool


@pytest.fixture
def run_dir(buckets):
    return as_path("s3://bucket/runs/mine")


def test_reports_of_a_local_run_are_written_in_its_directory(tmp_path):
    with Spool(tmp_path) as local:
        local.begin(fetch=True)
        assert local.folder == tmp_path
        assert local.upload()
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_with_its_reports(run_dir):
    for start, step in ((0, 1), (1, 2)):
        with Spool(run_dir) as reports:
            reports.begin(fetch=True)
            Events(reports.folder, True).note("started", start)
            writer = MetricWriter(reports.folder, start)
            writer.write(step, "train", {"loss": float(step)})
            writer.close()
            folder = reports.folder
        assert not folder.exists()

    assert folder.name == "mine"
    assert [line["step"] for line in metrics.read(run_dir)] == [1, 2]
    assert [event["step"] for event in events.read(run_dir)] == [0, 1]
    assert metrics.values(run_dir, "train", "loss") == {1: 1.0, 2: 2.0}
    names = [path.name for path in run_dir.iterdir()]
    assert sum(name.startswith("events.out.tfevents") for name in names) == 2


def test_only_what_changed_is_uploaded(run_dir, buckets, monkeypatch):
    written = []

    def before(operation, path):
        if operation == "write":
            written.append(pathlib.Path(path).name)

    with Spool(run_dir) as reports:
        (reports.folder / "pictures").mkdir()
        (reports.folder / "pictures" / "a.png").write_bytes(b"a")
        (reports.folder / "b.txt").write_bytes(b"b")
        assert reports.upload()
        monkeypatch.setattr(buckets, "before", staticmethod(before))
        assert reports.upload()
        assert written == []
        with (reports.folder / "b.txt").open("ab") as file:
            file.write(b"c")
    assert written == ["b.txt"]
    assert (run_dir / "b.txt").read_bytes() == b"bc"
    assert objects.read_or_none(run_dir / "pictures" / "a.png") == b"a"


def test_what_is_refused_is_uploaded_later_and_said_once(
    run_dir, buckets, monkeypatch, capsys
):
    def before(operation, path):
        raise PermissionError("403")

    with Spool(run_dir) as reports:
        (reports.folder / "b.txt").write_bytes(b"b")
        with monkeypatch.context() as patch:
            patch.setattr(buckets, "before", staticmethod(before))
            assert not reports.upload()
            assert not reports.upload()
        assert capsys.readouterr().err.count("reports wait to be uploaded") == 1
        assert reports.upload()
    assert (run_dir / "b.txt").read_bytes() == b"b"


def test_what_is_refused_at_the_end_is_kept(run_dir, buckets, monkeypatch, capsys):
    def before(operation, path):
        raise PermissionError("403")

    with Spool(run_dir) as reports:
        (reports.folder / "b.txt").write_bytes(b"b")
        monkeypatch.setattr(buckets, "before", staticmethod(before))
    assert f"are in {reports.folder}" in capsys.readouterr().err
    assert (reports.folder / "b.txt").read_bytes() == b"b"


def test_reports_are_uploaded_in_the_background(run_dir, monkeypatch):
    monkeypatch.setattr(spool, "SECONDS", 0.02)
    with Spool(run_dir) as reports:
        reports.begin(fetch=True)
        (reports.folder / "b.txt").write_bytes(b"b")
        while objects.read_or_none(run_dir / "b.txt") != b"b":
            pass
