"""A file of JSON lines larger than the memory that a process may have.

    python benchmarks/large_file.py [--gigabytes 10] [--address_space_mb 1536]

The file is random words, and is deleted at the end. A process whose address space is
limited (RLIMIT_AS) reads it through `@record_files()`: every text in order, and another
the batches of `data.streaming = True` with @bytes() for some seconds, which come from
places all over the file. Peak memory is the process's resident set (VmHWM), libraries
included.
"""

import argparse
import json
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        file = pathlib.Path(folder, "large.jsonl")
        began = time.perf_counter()
        write(file, round(args.gigabytes * 1e9))
        written = time.perf_counter() - began
        print(f"{file.stat().st_size / 1e9:.2f} GB written in {written:.0f} s")
        for what in ("texts", "batches"):
            command = [sys.executable, __file__, "--read", what, "--file", str(file)]
            command += ["--address_space_mb", str(args.address_space_mb)]
            command += ["--seconds", str(args.seconds)]
            subprocess.run(command, check=True)


def write(file: pathlib.Path, size: int) -> None:
    """Texts of random words, with a median of some 2 kB."""
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 123, n, np.uint8)).decode() for n in range(2, 12)]
    with file.open("w") as out:
        while out.tell() < size:
            texts = (rng.choice(words, rng.integers(50, 600)) for _ in range(2_000))
            block = "".join(
                json.dumps({"text": " ".join(text)}) + "\n" for text in texts
            )
            # Each block ten times: to draw words takes longer than to write them.
            for _ in range(10):
                out.write(block)


def read(what: str, file: str, megabytes: int, seconds: float) -> None:
    """Reads the file in this process, whose memory is limited first."""
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    from fmjax.data.sources.record_files import RecordFiles
    from fmjax.data.tasks.text_task import TextTask
    from fmjax.data.text.text_data import Data
    from fmjax.data.tokenizers.vocabularies import Bytes

    source = RecordFiles(file, validation_fraction=0.0)
    began = time.perf_counter()
    if what == "texts":
        size = sum(len(text) for _, text, _ in source.records("train"))
        took = time.perf_counter() - began
    else:
        task = TextTask(source, Bytes(), name="large")
        data = Data(task, length=1024, rows="packed", streaming=True)
        data.prepare()
        batches = data.train_batches(32, range(32), seed=0)
        next(batches)
        print(f"the first batch after {time.perf_counter() - began:.1f} s")
        began, size = time.perf_counter(), 0
        for batch in batches:
            size += int(batch["weights"].sum())
            if (took := time.perf_counter() - began) > seconds:
                break
        batches.close()
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
    print(
        f"{what}: {size / 1e6:,.0f} MB of text in {took:.0f} s, "
        f"{size / took / 1e6:.1f} MB/s; peak {peak:.0f} MiB of at most {megabytes}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--address_space_mb", type=int, default=1536)
    parser.add_argument("--seconds", type=float, default=60, help="of batches")
    parser.add_argument("--folder", help="where the file is written")
    parser.add_argument("--read", choices=["texts", "batches"], help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    found = arguments()
    if found.read:
        read(found.read, found.file, found.address_space_mb, found.seconds)
    else:
        main()
