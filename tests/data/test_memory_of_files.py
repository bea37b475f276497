"""Files larger than the memory: caches are built of them, and streams read them."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

# The processes may have no more memory of their own than this, in MiB: less than the
# file has, of which some 170 are the interpreter and libraries.
LIMIT, SIZE = 400, 450
PROGRAM = """
import itertools, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({limit} << 20, {limit} << 20))
from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes
task = TextTask(RecordFiles(sys.argv[1], validation_fraction=0.0), Bytes(), name="big")
data = Data(
    task, length=1024, cache_dir=sys.argv[2], processes=2,
    streaming=sys.argv[3] == "streaming", shuffle_mb=16,
)
data.prepare()
batches = data.train_batches(8, range(8), seed=0)
tokens = sum(int(b["weights"].sum()) for b in itertools.islice(batches, 20_000))
batches.close()
print(tokens)
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
    done = subprocess.run(
        [
            sys.executable, "-c", PROGRAM.format(limit=LIMIT),
            str(tmp_path / name), str(tmp_path / "cache"), way,
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # 20,000 batches of 8 rows of 1,024 bytes: a third of the file.
    assert int(done.stdout) > 0.95 * 20_000 * 8 * 1024
