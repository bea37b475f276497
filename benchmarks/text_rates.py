"""How fast texts of files reach a tokenizer, and caches are built, by all processes.

    python benchmarks/text_rates.py [--megabytes 200] [--processes 2]

Documents are random words, whose frequencies follow Zipf's law, with a median of
1.2 kB. Reading: processes read the parts of a file in turn, up to the text that the
tokenizer gets; files are in the cache of the operating system. The tokenizer alone: as
many processes encode documents that they hold in memory. The cache's build is that of
`fmjax data cache` with a trained tokenizer, from the start of its processes to the end.
"""

import argparse
import json
import multiprocessing
import pathlib
import resource
import tempfile
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from fmjax.data.sources.record_files import RecordFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.tokenizers import load_tokenizer
from fmjax.data.tokenizers.vocabularies import SentencePiece, train_sentencepiece


def main() -> None:
    args = arguments()
    console = Console(width=100)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = pathlib.Path(name)
        files = write_files(folder, args.megabytes)
        rates = Table("format", "file, MB", "text, MB", "MB of text/s")
        for file in files:
            size, seconds = read(file, args.processes)
            shown = [file.stat().st_size / 1e6, size / 1e6, size / seconds / 1e6]
            rates.add_row(file.name, *map("{:,.0f}".format, shown))
        console.print(rates)
        sample = folder / "sample.txt"
        sample.write_text("\n".join(words(4_000_000, seed=1)))
        train_sentencepiece(str(sample), 8192, str(folder / "a.model"))
        alone = encode(files[0], folder, args.processes)
        built = build(files[0], folder, args.processes)
        times = Table("what", "s", "times the tokenizer", "processors, s", "times")
        for name, found in (("the tokenizer alone", alone), ("the cache", built)):
            shown = [
                text
                for seconds, least in zip(found, alone)
                for text in (f"{seconds:.1f}", f"{seconds / least:.2f}")
            ]
            times.add_row(name, *shown)
        console.print(times)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=200, help="of text")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", help="where the files are written")
    return parser.parse_args()


def words(size: float, seed: int) -> list[str]:
    """Documents of so many bytes in all."""
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", np.uint8)
    shares = 1 / np.arange(1, 27)
    made = [
        rng.choice(letters, n, p=shares / shares.sum()).tobytes().decode()
        for n in np.random.default_rng(0).integers(2, 10, 20_000)
    ]
    documents, total = [], 0
    while total < size:
        count = int(np.clip(rng.lognormal(np.log(200), 1.0), 8, 4000))
        ranks = np.minimum(rng.zipf(1.2, count), len(made)) - 1
        documents.append(" ".join([made[rank] for rank in ranks.tolist()]))
        total += len(documents[-1]) + 1
    return documents


def write_files(folder: pathlib.Path, megabytes: float) -> list[pathlib.Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    documents = words(megabytes * 1e6, seed=0)
    lines, columns = folder / "text.jsonl", folder / "text.parquet"
    with lines.open("w") as out:
        for number, text in enumerate(documents):
            out.write(json.dumps({"id": number, "text": text}) + "\n")
    table = pa.table({"id": range(len(documents)), "text": documents})
    pq.write_table(table, columns, row_group_size=5_000)
    return [lines, columns]


def read(file: pathlib.Path, processes: int) -> tuple[int, float]:
    """Characters of text, and the seconds of the process that takes longest."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        shares = [(str(file), number, processes) for number in range(processes)]
        pool.map(read_share, shares)  # imports, and the file is in memory
        found = pool.map(read_share, shares, chunksize=1)
    return sum(size for size, _ in found), max(seconds for _, seconds in found)


def read_share(share: tuple[str, int, int]) -> tuple[int, float]:
    file, number, processes = share
    start = time.perf_counter()
    division = source_of(file).division("train")
    size = 0
    for part in division.parts(4 << 20)[number::processes]:
        for example in division.read(part):
            size += len(example.texts[0].decode())
    return size, time.perf_counter() - start


def encode(
    file: pathlib.Path, folder: pathlib.Path, processes: int
) -> tuple[float, float]:
    """Seconds of the process that takes longest, and of all processors."""
    SentencePiece(str(folder / "a.model")).build(None, None).save(folder / "saved")
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        shares = [
            (str(file), str(folder / "saved"), number, processes)
            for number in range(processes)
        ]
        walls, processors = zip(*pool.map(encode_share, shares, chunksize=1))
    return max(walls), sum(processors)


def encode_share(share: tuple[str, str, int, int]) -> tuple[float, float]:
    file, saved, number, processes = share
    tokenizer, division = load_tokenizer(saved), source_of(file).division("train")
    texts = [
        example.texts[0].decode()
        for part in division.parts(4 << 20)[number::processes]
        for example in division.read(part)
    ]
    start, used = time.perf_counter(), time.process_time()
    for text in texts:
        tokenizer.encode(text)
    return time.perf_counter() - start, time.process_time() - used


def build(
    file: pathlib.Path, folder: pathlib.Path, processes: int
) -> tuple[float, float]:
    """Seconds that the cache of a file takes, and of all processors."""
    tokenizer = SentencePiece(str(folder / "a.model"))
    task = TextTask(source_of(str(file)), tokenizer, name="rates")
    data = Data(task, length=1024, cache_dir=str(folder / "cache"), processes=processes)
    data.tokenizer()
    data.is_prepared()  # Digests of files, which every run compares.
    start, used = time.perf_counter(), processor_seconds()
    data.prepare()
    return time.perf_counter() - start, processor_seconds() - used


def processor_seconds() -> float:
    """Of this process, and of those that it started and that have ended."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(who) for who in whose]
    return sum(each.ru_utime + each.ru_stime for each in used)


def source_of(file: str) -> RecordFiles:
    return RecordFiles(file, validation_fraction=0.0)


if __name__ == "__main__":
    main()
