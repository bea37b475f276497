"""How fast cached text becomes batches, how full rows are, how long steps compile.

    python benchmarks/input_rates.py [--documents 20000] [--layers 12]

Documents are random letters, one token a byte, their lengths log-normal with a median
of 200. The rate is that of the training batches of `fmjax train`, of 32 rows of 1024
tokens, with nothing else to do. The step is that of GPT-2 with `--layers` layers and
four rows, compiled for this machine: at first without compiled programs that JAX has
kept, then with them, as when a run is started again.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from rich.console import Console
from rich.table import Table

ROWS = 32
LENGTH = 1024


def main() -> None:
    args = arguments()
    if args.compile_in:
        compile_step(args.compile_in, args.layers)
        return
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        rates = Table("rows", "tokens/s, median of batches", "padding")
        for rows in ("blocks", "packed"):
            rate, padding = read(pathlib.Path(folder), rows, args)
            rates.add_row(rows, f"{rate:,.0f}", f"{padding:.2%}")
        console.print(rates)
        compiled = Table("compiling a step", "trace, s", "compile, s")
        for state in ("without a cache", "from the cache"):
            compiled.add_row(state, *map("{:.1f}".format, in_process(folder, args)))
        console.print(compiled)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=60, help="that are timed")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--compile_in", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def read(folder: pathlib.Path, rows: str, args) -> tuple[float, float]:
    """Tokens a second of training batches, and the share of their rows without one."""
    from fmjax.data.sources.text_files import TextFiles
    from fmjax.data.tasks.text_task import TextTask
    from fmjax.data.text.text_data import Data
    from fmjax.data.tokenizers.vocabularies import Bytes

    file = folder / "text.txt"
    if not file.exists():
        rng = np.random.default_rng(0)
        lengths = np.clip(rng.lognormal(np.log(200), 1.0, args.documents), 8, 8000)
        letters = np.frombuffer(b"etaoin shrdlu", np.uint8)
        with file.open("wb") as out:
            for length in lengths.astype(int):
                out.write(rng.choice(letters, length).tobytes() + b"\n")
    source = TextFiles(str(file), document="line")
    task = TextTask(source, Bytes(), name="documents")
    data = Data(task, length=LENGTH, rows=rows, cache_dir=str(folder / "cache"))
    data.prepare()
    batches = data.train_batches(ROWS, range(ROWS), seed=0)
    for _ in range(5):
        next(batches)
    seconds, filled = [], []
    for _ in range(args.batches):
        start = time.perf_counter()
        batch = next(batches)
        seconds.append(time.perf_counter() - start)
        filled.append((batch["weights"] > 0).mean())
    batches.close()
    # Prefetched batches come at once, so the mean counts, over the median of ten parts.
    parts = np.array_split(seconds, min(10, len(seconds)))
    rate = ROWS * LENGTH / statistics.median(part.mean() for part in parts)
    return rate, 1 - float(np.mean(filled))


def in_process(folder: str, args) -> tuple[float, float]:
    """Seconds of tracing and of compiling in a process of its own."""
    done = subprocess.run(
        [
            sys.executable, __file__, "--layers", str(args.layers),
            "--compile_in", str(pathlib.Path(folder) / "programs"),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )  # fmt: skip
    trace, compile_ = map(float, done.stdout.split()[-2:])
    return trace, compile_


def compile_step(folder: pathlib.Path, layers: int) -> None:
    """Prints the seconds of tracing and of compiling; programs are kept in `folder`."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    from fmjax.config.load import load_experiment
    from fmjax.training.setup import plan_run
    from fmjax.training.traced_step import TracedStep

    bindings = (
        "mesh.fsdp=1", "train.batch_size=4", "transformer.remat='none'",
        "transformer.remat_save=()", f"transformer.num_layers={layers}",
        "transformer.scan_unroll=1",
    )  # fmt: skip
    experiment = load_experiment("pods/gpt2.gin", bindings)
    mesh, rules = experiment.mesh.build(jax.devices()), experiment.mesh.all_rules
    step = TracedStep(experiment, plan_run(experiment, mesh, rules), mesh, rules)
    start = time.perf_counter()
    traced, _ = step.trace()
    lowered = traced.lower()
    middle = time.perf_counter()
    lowered.compile()
    print(middle - start, time.perf_counter() - middle)


if __name__ == "__main__":
    main()
