"""Files that grow, are cut and are replaced while they are read."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmjax.training.reporting import json_lines
from fmjax.training.reporting.json_lines import Tail

FIELDS = {"step": int}
ACTIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 5)),
    st.tuples(st.just("half"), st.just(0)),
    st.tuples(st.just("damage"), st.just(0)),
    st.tuples(st.just("cut"), st.integers(0, 6)),
    st.tuples(st.just("cut and append"), st.integers(0, 6)),
    st.tuples(st.just("remove"), st.just(0)),
    st.tuples(st.just("look"), st.just(0)),
)


def test_a_line_whose_end_is_read_alone_may_be_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "_CHUNK_BYTES", 11)
    file = tmp_path / "lines.jsonl"
    tail = Tail(file, FIELDS)
    for step in (1, 2):
        file.write_text(f'{{"step": {step}}}\n')
        found = [line for _, objects in tail.chunks() for line in objects]
        assert found == [{"step": step}]


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(actions=st.lists(ACTIONS, max_size=12), chunk=st.sampled_from([64, 2**23]))
def test_objects_are_those_of_the_whole_file(tmp_path, monkeypatch, actions, chunk):
    monkeypatch.setattr(json_lines, "_CHUNK_BYTES", chunk)
    file = tmp_path / "lines.jsonl"
    file.unlink(missing_ok=True)
    tail, found, written = Tail(file, FIELDS), [], 0

    def look():
        for anew, objects in tail.chunks():
            if anew:
                found.clear()
            found.extend(objects)

    for action, count in [*actions, ("look", 0)]:
        lines = file.read_bytes().splitlines(True) if file.exists() else []
        if action == "append":
            for _ in range(count):
                written += 1  # No two lines are equal, as their times are not.
                lines.append(json.dumps({"step": written}).encode() + b"\n")
        elif action == "half":
            lines.append(b'{"step": 1')
        elif action == "damage":
            written += 1
            lines.append(b"\x00\xff%d\n" % written)
        elif action.startswith("cut"):
            lines = lines[: len(lines) - count] if count else lines
            if action == "cut and append":
                for _ in range(count):
                    written += 1
                    lines.append(json.dumps({"step": written}).encode() + b"\n")
        elif action == "remove":
            file.unlink(missing_ok=True)
            continue
        else:
            look()
            continue
        file.write_bytes(b"".join(lines))

    assert found == list(json_lines.read(file, FIELDS))
