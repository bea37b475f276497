"""The source `python_stdlib`: the code of Python's standard library."""

import dataclasses
import functools
import itertools
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import xxhash

from fmjax.configurable import configurable
from fmjax.data.sources.file_digest import digest_files
from fmjax.data.sources.source import Document, check_split, function_source
from fmjax.data.sources.text_reader import cut
from fmjax.errors import UserError, require


@configurable("python_stdlib")
@dataclasses.dataclass(frozen=True)
class PythonStdlib:
    """The code of the running Python's standard library; each file is a document.

    About 10 MB of real text that is available on every machine. Tests (lists of unusual
    inputs), `encodings` (character tables), installed packages and the generated
    `_sysconfigdata` are left out. The validation split consists of whole top-level
    packages and modules, chosen by a hash of their names, so that no other file of them
    is trained on.

    Attributes:
      validation_fraction: maximum share of the bytes that is held out.
    """

    validation_fraction: float = 0.05

    def __post_init__(self):
        valid = 0 < self.validation_fraction < 1
        require(self, "validation_fraction", valid, "0 < fraction < 1")

    @property
    def splits(self) -> tuple[str, ...]:
        """`train` and `validation`."""
        return ("train", "validation")

    def fingerprint(self, split: str) -> str:
        """Digest of the split's files."""
        return digest_files(self._files(split))

    def documents(self, split: str) -> Iterator[Document]:
        """The files of a split, sorted by name, without empty ones."""
        root = _stdlib_root()
        for file in self._files(split):
            text = file.read_bytes()
            name = file.relative_to(root).as_posix()
            for begin, end in cut(text, 0, len(text)):
                if text[begin:end].strip():
                    yield name, text[begin:end]

    def size(self, split: str) -> int:
        """Bytes of the split."""
        return sum(file.stat().st_size for file in self._files(split))

    def features(self) -> dict[str, str]:
        """Names of the features, as `function_source` yields them."""
        return {"targets": "text", "name": "name"}

    def seqio_source(self):
        """A seqio.FunctionDataSource."""
        return function_source(self)

    def _files(self, split: str) -> list[Path]:
        check_split("python_stdlib", split, self.splits)
        packages = _stdlib_packages()
        sizes = {
            name: sum(file.stat().st_size for file in files)
            for name, files in packages.items()
        }
        budget = self.validation_fraction * sum(sizes.values())
        held_out = set()
        for name in sorted(
            packages, key=lambda name: xxhash.xxh3_64_intdigest(name.encode())
        ):
            if sizes[name] <= budget:
                held_out.add(name)
                budget -= sizes[name]
        chosen = (
            files
            for name, files in packages.items()
            if (name in held_out) == (split == "validation")
        )
        return sorted(itertools.chain.from_iterable(chosen))


def _stdlib_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


@functools.cache
def _stdlib_packages() -> dict[str, list[Path]]:
    """Maps top-level packages and modules to their Python files."""
    left_out = {"test", "tests", "idle_test", "encodings", "__pycache__"}
    left_out |= {"site-packages", "dist-packages"}
    root = _stdlib_root()
    packages = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in left_out)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                file = Path(folder) / name
                top = file.relative_to(root).parts[0].removesuffix(".py")
                packages.setdefault(top, []).append(file)
    if not packages:
        raise UserError(f"python_stdlib: no Python files in {root}.")
    return packages
