"""Feeds damaged and made-up input to every reader, which may refuse it and no more.

    python -m tests.faults.fuzz --n 20000

Each input is a good file in which bytes or values were changed, or arbitrary bytes, as
hypothesis draws them. A reader has failed that raises anything but a UserError, takes
longer than a second, starts a process, unpickles, or opens a file that is not its own.
"""

import argparse
import collections
import contextlib
import copy
import json
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import hypothesis
from hypothesis import strategies as st

from fmjax.errors import UserError
from tests.faults.readers import Reader, readers

# Of computing: a machine that does other things is no hang. Waiting may take longer.
SECONDS, WAITING_SECONDS = 1.0, 20.0
# What readers may allocate in all, beside what was there when they began.
BYTES = 8 << 30
COUNTED = ("tried", "refused", "crashes", "hangs")

# What parsers trip over.
WORDS = [
    b"null", b"-1", b"1e999", b"NaN", b"9" * 30, b"[]", b"{}", b'""', b"true", b"0",
    b'"../../../etc/passwd"', b'"/etc/passwd"', b"\x00", b"\xff\xfe", b"\\ud800",
    b"[" * 2000, b"[" * 400 + b"]" * 400, b"@", b"%X", b"%B2", b"\n", b"=", b"'",
    b"(", b"1" * 5000, b"import os", b"include 'x'", b"__class__", "²".encode(),
]  # fmt: skip
DEEP: list = []
for _ in range(100):
    DEEP = [DEEP]
# What one value of a JSON file becomes; `...` takes it out.
VALUES = [
    ..., None, True, -1, 0, 1, 10**9, 2**31, 10**13, 10**400, 0.5, float("inf"),
    float("nan"), "", "x", "q" * 300, "/etc/passwd", "../outside.png", "\0", "\ud800",
    [], [[5, 4]], [{}], {}, {"a": "b"}, DEEP,
]  # fmt: skip

_PLACES = st.floats(0, 1)
_EDITS = st.lists(
    st.tuples(
        _PLACES,
        st.integers(0, 15) | st.just(1 << 40),
        st.binary(max_size=8) | st.sampled_from(WORDS) | st.none(),
    ),
    min_size=1,
    max_size=8,
)
_VALUE = st.sampled_from(VALUES) | st.integers() | st.text(max_size=5)
_VALUE_EDITS = st.lists(st.tuples(_PLACES, _VALUE), min_size=1, max_size=2)


def inputs(good: bytes) -> st.SearchStrategy[bytes]:
    """Damaged forms of a good input, and some that have nothing to do with it."""
    drawn = [_EDITS.map(lambda edits: with_bytes(good, edits)), st.binary(max_size=64)]
    if _parsed(good):
        changed = _VALUE_EDITS.map(lambda edits: with_values(good, edits))
        drawn += [changed, changed]
    return st.one_of(drawn)


def with_bytes(content: bytes, edits: list[tuple[float, int, bytes | None]]) -> bytes:
    """The content with so many bytes at a place replaced, or repeated."""
    for place, count, new in edits:
        at = round(place * len(content))
        cut = content[at : at + count]
        content = (
            content[:at] + (2 * cut if new is None else new) + content[at:][count:]
        )
    return content


def with_values(content: bytes, edits: list[tuple[float, Any]]) -> bytes:
    """The content, which is JSON or lines of JSON, with values replaced."""
    lines = _parsed(content)
    for place, new in edits:
        nodes = list(_nodes(lines))
        if not nodes:
            break
        holder, key = nodes[round(place * (len(nodes) - 1))]
        if new is not ...:
            # A copy, for the next edit may be inside.
            holder[key] = copy.deepcopy(new)
        else:
            del holder[key]
    return b"\n".join(json.dumps(line).encode() for line in lines)


def _parsed(content: bytes) -> list:
    """The values of JSON, or of lines of it; none of anything else."""
    with contextlib.suppress(ValueError):
        return [json.loads(content)]
    with contextlib.suppress(ValueError):
        return [json.loads(line) for line in content.splitlines()]
    return []


def _nodes(value) -> Iterator[tuple[Any, Any]]:
    """Every value inside, as what holds it and where."""
    inside = enumerate(value) if isinstance(value, list) else value.items()
    for key, node in list(inside):
        yield value, key
        if isinstance(node, (list, dict)):
            yield from _nodes(node)


def fuzz(
    count: int, folder: pathlib.Path, seed: int = 0, only: str = ""
) -> dict[str, dict[str, int]]:
    """Tries so many inputs on each reader whose name has `only` in it.

    Returns:
      Of each: inputs tried, refused, crashes and hangs.
    """
    found = {}
    for name, (good, read) in readers(folder).items():
        if only in name:
            read(good)
            found[name] = dict(_fuzzed(name, good, read, count, seed))
    return found


def _fuzzed(
    name: str, good: bytes, read: Reader, count: int, seed: int
) -> collections.Counter:
    counts = collections.Counter(dict.fromkeys(COUNTED, 0))
    told = set()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        # Crashes are counted, so that hypothesis sees none to make smaller.
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(inputs(good))
    def tries(content: bytes) -> None:
        began = time.process_time()
        failure, text = None, ""
        try:
            with watched():
                read(content)
        except UserError:
            counts["refused"] += 1
        except _Hang:
            counts["hangs"] += 1
            failure = "hangs"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # Panics of Rust are no Exceptions.
            counts["crashes"] += 1
            failure = "".join(traceback.format_tb(error.__traceback__)[-2:])
            text = f"{type(error).__name__}: {error!s:.200}"
        else:
            if time.process_time() - began > SECONDS:
                counts["hangs"] += 1
                failure = "takes long"
        counts["tried"] += 1
        if failure and failure not in told:
            told.add(failure)
            print(f"{name}: {text}: {content[:300]!r}\n{failure}", flush=True)

    tries()
    return counts


class _Hang(BaseException):
    """A reader waits for ever."""


class _Forbidden(BaseException):
    """A reader does what no file may make it do."""


_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
_FORBIDDEN += ("pickle.find_class", "socket.connect", "ctypes.dlopen")
_watching = False


def _audit(event: str, args: tuple) -> None:
    if not _watching:
        return
    opens = event == "open" and str(args[0]).endswith(("etc/passwd", "outside.png"))
    if opens or event in _FORBIDDEN:
        raise _Forbidden(f"{event} {args!r:.200}")


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Inside, what is forbidden raises, and so does waiting for too long."""
    global _watching
    alarmed = threading.current_thread() is threading.main_thread()

    def stop(*_):
        raise _Hang

    if alarmed:
        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
    _watching = True
    try:
        yield
    finally:
        _watching = False
        if alarmed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


sys.addaudithook(_audit)


def main() -> int:
    """Tries as many as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20000, help="inputs of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="of readers with this in the name")
    args = parser.parse_args()
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = used * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        found = fuzz(args.n, folder, args.seed, args.only)
    finally:
        shutil.rmtree(folder)
    for name, counts in found.items():
        print(f"{name:40}" + "  ".join(f"{k} {v:,}" for k, v in counts.items()))
    totals = {k: sum(counts[k] for counts in found.values()) for k in COUNTED}
    print(f"{'all':40}" + "  ".join(f"{k} {v:,}" for k, v in totals.items()))
    return int(any(c["crashes"] or c["hangs"] for c in found.values()))


if __name__ == "__main__":
    sys.exit(main())
