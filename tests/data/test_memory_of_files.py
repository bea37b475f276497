"""Files larger than the memory: caches are built of them, and streams read them."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# Bytes of the files, and how many of its own a process may have, in MiB: some 100 are
# of the interpreter and libraries.
SIZE, LIMIT = 400, 340
PROGRAM = r"""
import itertools, pathlib, re, sys, threading
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes

def held():
    me = pathlib.Path("/proc/self")
    children = (me / "task" / me.resolve().name / "children").read_text().split()
    for process in (me, *(pathlib.Path("/proc", child) for child in children)):
        try:
            status = (process / "status").read_text()
        except OSError:  # It has just ended.
            continue
        found = re.search(r"RssAnon:\s+(\d+)", status)
        yield int(found[1]) >> 10 if found else 0

def watch():
    while not done.wait(0.01):
        peaks.append(max(held()))

peaks, done = [0], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
task = TextTask(RecordFiles(sys.argv[1], validation_fraction=0.0), Bytes(), name="big")
data = Data(
    task, length=1024, cache_dir=sys.argv[2], processes=2,
    streaming=sys.argv[3] == "streaming", shuffle_mb=16,
)
data.prepare()
batches = data.train_batches(8, range(8), seed=0)
tokens = sum(int(b["weights"].sum()) for b in itertools.islice(batches, 10_000))
batches.close()
done.set()
watcher.join()
print(tokens, max(peaks))
"""


def write(file, size):
    """Texts of so many MiB in all."""
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, n, np.uint8)).decode() for n in range(2, 12)]
    texts = [" ".join(rng.choice(words, rng.integers(50, 800))) for _ in range(1000)]
    count = (size << 20) // sum(map(len, texts))
    if file.suffix == ".parquet":
        schema = pa.schema({"text": pa.string()})
        # Uncompressed, and row groups of a quarter of the file.
        with pq.ParquetWriter(
            file, schema, compression="none", use_dictionary=False
        ) as o:
            for _ in range(4):
                o.write_table(pa.table({"text": texts * (count // 4)}))
        return
    block = "\n".join(json.dumps({"text": text}) for text in texts) + "\n"
    with file.open("w") as out:
        for _ in range(count):
            out.write(block)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["cache", "streaming"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_files_larger_than_the_memory(tmp_path, name, way):
    write(tmp_path / name, SIZE)
    assert (tmp_path / name).stat().st_size > 0.95 * SIZE * 2**20
    command = (PROGRAM, str(tmp_path / name), str(tmp_path / "cache"), way)
    done = subprocess.run(
        [sys.executable, "-c", *command],
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tokens, held = map(int, done.stdout.split())
    # Of rows of 1,024 bytes: a fifth of the file.
    assert tokens > 0.95 * 10_000 * 8 * 1024
    assert 50 < held < LIMIT
