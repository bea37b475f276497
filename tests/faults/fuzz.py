"""Feeds damaged and made-up input to every reader, which may refuse it and no more.

    python -m tests.faults.fuzz --n 20000

Each input is a good file in which bytes were changed, cut out or repeated, or arbitrary
text. A reader that raises anything but a UserError, or takes longer than a second, or
opens a file outside the folder that it was given, has failed.
"""

import argparse
import builtins
import collections
import contextlib
import json
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import safetensors.numpy

from fmjax import config, run_lock
from fmjax.data import cache
from fmjax.data.packing import Layout
from fmjax.errors import UserError
from fmjax.interop.tensor_files import TensorFiles
from fmjax.training import bad_step_log, events, metrics
from fmjax.training.digests import from_json, opened, sealed

SECONDS = 1.0
Target = Callable[[bytes], None]


def targets(folder: pathlib.Path) -> dict[str, tuple[bytes, Target]]:
    """A good input of each reader, and the reader."""
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 3), np.float32)}
    tensors = safetensors.numpy.save(arrays)

    def safetensors_file(content: bytes) -> None:
        (folder / "model.safetensors").write_bytes(content)
        files = TensorFiles(folder)
        for name in files.names:
            files.read(name, arrays[name].shape if name in arrays else (1,))

    shards = folder / "sharded"
    shards.mkdir()
    (shards / "one.safetensors").write_bytes(tensors)
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}

    def safetensors_index(content: bytes) -> None:
        (shards / "model.safetensors.index.json").write_bytes(content)
        files = TensorFiles(shards)
        for name in files.names:
            files.read(name, arrays[name].shape if name in arrays else (1,))

    key = cache.CacheKey("task", "train", {}, Layout("blocks", 4, None, 1))
    place = key.folder(folder)
    place.mkdir(parents=True)
    (place / "rows-0.array_record").write_bytes(b"rows")
    metadata = {
        "key": key.as_json(), "padding_share": 0.0, "documents": 1, "tokens": 4,
        "bytes": 4, "rows": 1, "targets": 4, "skipped": 0, "skipped_names": [],
        "seconds": 0.1, "shards": {"rows-0.array_record": 4},
    }  # fmt: skip

    def cache_metadata(content: bytes) -> None:
        (place / "metadata.json").write_bytes(content)
        found = cache.open_cache(folder, key)
        assert all(shard.parent == place for shard in found.shards)

    def gin_bindings(content: bytes) -> None:
        text = content.decode("utf-8", "replace")
        config.load("quickstart.gin", [text])

    def gin_file(content: bytes) -> None:
        (folder / "mine.gin").write_bytes(content)
        config.load(str(folder / "mine.gin"))

    def jsonl(content: bytes) -> None:
        for file in (metrics.FILE, events.FILE, bad_step_log.FILE):
            (folder / file).write_bytes(content)
        metrics.read(folder)
        events.read(folder)
        bad_step_log.read(folder)

    line = {
        "step": 1, "split": "train", "loss": 1.0, "time": 1.0, "kind": "started",
        "text": "", "batch": 3, "why": "spike", "action": "skip", "passed_over": [],
        "grad_norm": 1.0,
    }  # fmt: skip

    def lock(content: bytes) -> None:
        (folder / run_lock.FILE).write_bytes(content)
        run_lock.read(folder)
        run_lock.is_alive(folder)

    def digest_file(content: bytes) -> None:
        # Whatever it raises makes the checkpoint a damaged one.
        with contextlib.suppress(Exception):
            from_json(opened(json.loads(content)))

    digests = sealed([["params/x", "float32", [2, 3], [[0, 2], [0, 3]], "ab12"]])
    return {
        "safetensors": (tensors, safetensors_file),
        "safetensors index": (json.dumps(index).encode(), safetensors_index),
        "cache metadata": (json.dumps(metadata).encode(), cache_metadata),
        "gin bindings": (b"transformer.num_layers=2", gin_bindings),
        "gin file": (GIN, gin_file),
        "JSON lines": ((json.dumps(line) + "\n").encode() * 3, jsonl),
        "lock": (json.dumps(line | {"host": "h", "pid": 3}).encode(), lock),
        "digests": (json.dumps(digests).encode(), digest_file),
    }


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content with something changed."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.randrange(1, 16))
        what = rng.randrange(6)
        if what == 0:
            changed[at:end] = rng.randbytes(end - at)
        elif what == 1:
            del changed[at:end]
        elif what == 2:
            changed[at:at] = changed[at:end] * rng.randrange(1, 4)
        elif what == 3:
            changed[at:end] = rng.choice(WORDS)
        elif what == 4:
            del changed[at:]
        elif at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


GIN = b"""# A config.
include 'quickstart.gin'
transformer.num_layers = 2
experiment.optimizer = @adamw()
adamw.b2 = %B2
B2 = 0.95
"""
# What parsers trip over.
WORDS = [
    b"null", b"-1", b"1e999", b"NaN", b"9" * 30, b"[]", b"{}", b'""', b"true", b"0",
    b'"../../../etc/passwd"', b"\x00", b"\xff\xfe", b"\\ud800", b"[" * 2000, b"@",
    b"%X",
    b"\n", b"=", b"'", b"(", b"1" * 5000, b"import os", b"include 'x'", b"__class__",
]  # fmt: skip


def fuzz(count: int, folder: pathlib.Path, seed: int = 0) -> dict[str, dict[str, int]]:
    """Tries so many inputs on each reader.

    Returns:
      Of each: inputs tried, refused, crashes and hangs.
    """
    rng = random.Random(seed)
    found = {}
    for name, (good, read) in targets(folder).items():
        read(good)
        counts = collections.Counter(tried=0, refused=0, crashes=0, hangs=0)
        for number in range(count):
            content = damaged(good, rng) if number % 8 else rng.randbytes(64)
            began = time.monotonic()
            try:
                with _inside(folder):
                    read(content)
            except UserError:
                counts["refused"] += 1
            except Exception as error:
                counts["crashes"] += 1
                print(f"{name}: {type(error).__name__}: {error}: {content[:300]!r}")
            counts["tried"] += 1
            counts["hangs"] += time.monotonic() - began > SECONDS
        found[name] = dict(counts)
    return found


@contextlib.contextmanager
def _inside(folder: pathlib.Path):
    """Nothing of the system's own is opened inside."""
    original = builtins.open

    def watched(file, *args, **kwargs):
        if str(file).endswith("etc/passwd"):
            raise AssertionError(f"{file} is outside {folder}")
        return original(file, *args, **kwargs)

    builtins.open = watched
    try:
        yield
    finally:
        builtins.open = original


def main() -> int:
    """Tries as many as asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20000, help="inputs of each reader")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp())
    try:
        found = fuzz(args.n, folder, args.seed)
    finally:
        shutil.rmtree(folder)
    for name, counts in found.items():
        print(f"{name:20}" + "  ".join(f"{k} {v:,}" for k, v in counts.items()))
    return int(any(c["crashes"] or c["hangs"] for c in found.values()))


if __name__ == "__main__":
    sys.exit(main())
