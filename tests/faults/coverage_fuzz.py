"""Feeds readers input that is led by the lines of code that it reaches (libFuzzer).

    pip install atheris
    python -m tests.faults.coverage_fuzz --seconds 60 [--only "PyTorch's"]

`tests.faults.fuzz` draws its input without knowing what it does. Here an input that
reaches new lines of the readers is kept and changed further, from the good file of each
reader. Atheris ends its process, so each reader has one of its own. A reader has failed
by the rules of `tests.faults.fuzz`; the input is then in the folder that is printed.
"""

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

# Packages whose lines lead the input: readers of files of strangers, in Python.
LED = (
    "fmjax.interop.containers",
    "fmjax.data.sources.record_formats",
    "fmjax.data.sources.token_formats",
    "fmjax.data.sources.text_reader",
    "fmjax.data.sources.token_division",
    "zipfile",
)
# Parts of names of `tests.faults.readers`: of pickles, and of records and tokens.
CHOSEN = ("PyTorch's", "records", "captions", "megatron", "llm.c")


def main() -> int:
    """Runs a process for each reader, one after another."""
    args = arguments()
    if args.reader:
        fuzz(args.reader, args.folder, args.seconds)
    failed = 0
    for name in names():
        if args.only.lower() not in name.lower():
            continue
        folder = pathlib.Path(tempfile.mkdtemp(prefix="fmjax-fuzz-"))
        command = [sys.executable, "-m", "tests.faults.coverage_fuzz"]
        command += ["--reader", name, "--folder", folder]
        command += ["--seconds", str(args.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        runs = re.findall(r"^#(\d+)\s", done.stderr, re.MULTILINE)
        reached = re.findall(r" cov: (\d+)", done.stderr)
        print(f"{name:40}tried {int(runs[-1]) if runs else 0:,}  "
              f"lines and branches {reached[0] if reached else 0} to "
              f"{reached[-1] if reached else 0}", flush=True)  # fmt: skip
        if done.returncode:
            failed += 1
            print(
                done.stdout[-3000:],
                done.stderr[-1000:],
                f"{name} has failed; see {folder}",
                sep="\n",
            )
    return int(failed > 0)


def names() -> list[str]:
    """Names of the readers that are led well, in a process that loads them for it."""
    listed = (
        "import pathlib, tempfile\n"
        "from tests.faults.readers import readers\n"
        "print(*readers(pathlib.Path(tempfile.mkdtemp())), sep='\\n')"
    )
    command = [sys.executable, "-c", listed]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    every = done.stdout.splitlines()
    return [n for n in every if any(part in n for part in CHOSEN)]


def fuzz(name: str, folder: pathlib.Path, seconds: int) -> None:
    """Fuzzes one reader in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=list(LED)):
        from fmjax.errors import UserError
        from tests.faults.fuzz import watched
        from tests.faults.readers import readers

    (folder / "readers").mkdir()
    (folder / "corpus").mkdir()
    good, read = readers(folder / "readers")[name]
    read(good)
    (folder / "corpus" / "good").write_bytes(good)

    def tries(content: bytes) -> None:
        try:
            with watched():
                read(content)
        except UserError:
            pass

    options = [
        sys.argv[0], str(folder / "corpus"), f"-max_total_time={seconds}",
        f"-artifact_prefix={folder}/failed-", f"-max_len={4 * len(good) + 64}",
        # A reader's own limit of time is shorter; memory is that of all libraries.
        "-timeout=60", "-rss_limit_mb=0", "-print_final_stats=0",
    ]  # fmt: skip
    atheris.Setup(options, tries)
    atheris.Fuzz()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--only", default="", help="readers with this in the name")
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
