"""A few of the inputs of `python -m tests.faults.fuzz`."""

from tests.faults import fuzz as fuzzing
from tests.faults.fuzz import fuzz, with_bytes, with_values


def test_readers_refuse_or_take_whatever_comes(tmp_path):
    for name, counts in fuzz(30, tmp_path, seed=2).items():
        assert counts["tried"] == 30, name
        assert counts["crashes"] == 0, name
        assert counts["hangs"] == 0, name


def test_inputs_are_damaged_forms_of_good_ones():
    assert with_bytes(b"abcdef", [(0.5, 1, b"xy")]) == b"abcxyef"
    assert with_bytes(b"abcdef", [(0.5, 2, None)]) == b"abcdedef"
    assert with_bytes(b"abcdef", [(0.5, 1 << 40, b"")]) == b"abc"
    line = b'{"a": [1, 2]}'
    assert with_values(line, [(0.0, 7)]) == b"7"
    assert with_values(line, [(1.0, ...)]) == b'{"a": [1]}'
    assert with_values(line + b"\n" + line, [(1.0, "x")]) == line + b'\n{"a": [1, "x"]}'


def test_what_no_reader_may_do_is_seen(tmp_path, monkeypatch):
    def crashes(content):
        if content != b"{}":
            raise KeyError(content)

    def waits(content):
        while content != b"{}":
            pass

    def looks(content):
        if content != b"{}":
            (tmp_path / "outside.png").read_bytes()

    bad = {name.__name__: (b"{}", name) for name in (crashes, waits, looks)}
    monkeypatch.setattr(fuzzing, "readers", lambda folder: bad)
    monkeypatch.setattr(fuzzing, "WAITING_SECONDS", 0.1)
    (tmp_path / "outside.png").touch()
    found = fuzz(5, tmp_path)
    assert found["crashes"]["crashes"] >= 3
    assert found["looks"]["crashes"] >= 3
    assert found["waits"]["hangs"] >= 3
