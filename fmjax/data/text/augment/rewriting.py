"""Augmentation by variants of whole texts, which are made once and kept in a cache.

The variants of all training texts are in one Arrow file, `variants.arrow` in a folder
beside the caches of rows, which pandas and pyarrow read. The folder's name contains a
digest of all that they depend on. While they are made, those of each finished unit of
texts are in a folder beside it, from which an interrupted build goes on.
"""

import abc
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from fmjax.data import folders
from fmjax.data.folders import (
    atomic_folder,
    digest_of,
    publish,
    shared_place,
    wait_until,
)
from fmjax.data.runtime.build_folder import BuildFolder, UnitWriter
from fmjax.data.runtime.build_progress import say
from fmjax.data.text.augment.augmentation import Rng, TextAugmentation, TrainingTexts
from fmjax.errors import UserError

# Increased whenever the format or the meaning of variants changes.
_VERSION = 1
_FILE, _METADATA = "variants.arrow", "metadata.json"
# How long a file system or a bucket may take to show files to other processes.
_SHOWN_SECONDS = 300.0

Variants = list[list[str]]


class Rewriting(TextAugmentation):
    """Base class of augmentations that replace a text by one of its variants."""

    @abc.abstractmethod
    def key(self) -> dict[str, Any]:
        """A JSON value of all that variants depend on, besides the texts."""

    @abc.abstractmethod
    def write(self, build: "VariantsBuild") -> None:
        """Makes the variants that are missing; every process of a run calls it.

        One of them stores those of each unit that is not `build.finished()`, and then
        calls `build.finish()`.
        """

    @property
    @abc.abstractmethod
    def unit_size(self) -> int:
        """Number of texts of a unit."""

    def digest(self) -> str:
        """See `TextAugmentation`."""
        return digest_of(self.key())

    def of(self, texts: TrainingTexts) -> "Rewritten":
        """See `TextAugmentation`."""
        return Rewritten(self, texts)

    def change(self, words: Sequence[str], rng: Rng) -> list[str]:
        """Raises TypeError: only `of` some texts there are variants."""
        raise TypeError(f"@{self.gin_name}() changes texts that are given to `of`")


class Rewritten(TextAugmentation):
    """A `Rewriting` of the training texts, whose variants are in a cache."""

    def __init__(self, how: Rewriting, texts: TrainingTexts):
        """Reads nothing yet."""
        self._how, self._texts = how, texts
        self.gin_name = how.gin_name

    def check(self) -> None:
        """See `TextAugmentation`."""
        self._how.check()

    def digest(self) -> str:
        """See `TextAugmentation`."""
        return self._how.digest()

    def prepare(self) -> None:
        """Makes the variants, with the other processes of the run."""
        build = self._build
        self._how.write(build)
        what = f"the variants of @{self.gin_name}()"
        wait_until(build.is_built, what, _SHOWN_SECONDS)

    def change(self, words: Sequence[str], rng: Rng) -> list[str]:
        """A variant of the text, each as likely as the others; itself without one."""
        found = self._variants(" ".join(words))
        return found[int(rng.integers(len(found)))].split() if found else list(words)

    @functools.cached_property
    def _build(self) -> "VariantsBuild":
        key = {"version": _VERSION, "how": self._how.key(), "texts": self._texts.key()}
        return VariantsBuild(self._texts, key, self._how)

    @functools.cached_property
    def _variants(self) -> "_StoredVariants":
        return _StoredVariants(self._build.folder, self.gin_name)


class VariantsBuild:
    """The build of a cache of variants, a unit of texts at a time.

    Attributes:
      folder: of the cache.
    """

    def __init__(self, texts: TrainingTexts, key: dict[str, Any], how: Rewriting):
        """Reads nothing yet.

        Args:
          texts: to make variants of.
          key: of the cache.
          how: makes them.
        """
        self._texts, self._key, self._how = texts, key, how
        name = f"{how.gin_name}-{digest_of(key)}"
        self.folder = texts.root / "variants" / name

    @functools.cached_property
    def units(self) -> list[list[str]]:
        """The different texts in units, in which they have similar lengths.

        They are the same in every process.
        """
        texts = sorted(dict.fromkeys(self._texts.read()), key=len)
        size = self._how.unit_size
        return [texts[start : start + size] for start in range(0, len(texts), size)]

    def is_built(self) -> bool:
        """Whether all variants are there."""
        return folders.is_built(self.folder, _METADATA)

    def finished(self) -> set[int]:
        """The numbers of the units whose variants are stored."""
        return {number for number in self._parts.finished() if number < len(self.units)}

    def store(self, number: int, variants: Variants) -> None:
        """Stores the variants of a unit, a list for each of its texts."""
        if not self._parts.has_plan():
            self._parts.write_plan((), self._texts.root)
        writer = UnitWriter(self._parts, number)
        content = json.dumps(variants, ensure_ascii=False).encode()
        writer.write({"variants": np.frombuffer(content, np.uint8)})
        writer.finish({})

    def finish(self) -> None:
        """Writes the cache of the variants of all units, unless it is there.

        Raises:
          UserError: a stored unit is damaged, or the folder cannot be written.
        """
        if self.is_built():
            publish(self.folder)
            self._parts.remove()  # if the process that built it has ended before
            return
        texts, variants = [], []
        for number, unit in enumerate(self.units):
            stored = b"".join(
                piece["variants"].tobytes() for piece in self._parts.pieces(number)
            )
            for text, found in zip(unit, json.loads(stored), strict=True):
                texts.append(text)
                different = dict.fromkeys(" ".join(each.split()) for each in found)
                variants.append([each for each in different if each not in ("", text)])
        digests = np.array([_digest(text) for text in texts], np.uint64)
        order = np.argsort(digests, kind="stable")
        columns = {
            "digest": pa.array(digests[order]),
            "text": pa.array([texts[i] for i in order], pa.large_string()),
            "variants": pa.array(
                [variants[i] for i in order], pa.large_list(pa.large_string())
            ),
        }
        with atomic_folder(self.folder) as folder:
            table = pa.table(columns)
            with pa.ipc.new_file(str(folder / _FILE), table.schema) as file:
                file.write_table(table)
            text = json.dumps({"key": self._key}, indent=2) + "\n"
            (folder / _METADATA).write_text(text)
        self._parts.remove()
        total, none = sum(map(len, variants)), sum(not each for each in variants)
        say(
            f"@{self._how.gin_name}(): {total:,} variants of {len(texts):,} texts in "
            f"{self.folder / _FILE}"
            + f"; {none:,} texts have none, and stay as they are"
            * bool(none)
        )

    @functools.cached_property
    def _parts(self) -> BuildFolder:
        return BuildFolder(
            shared_place(self.folder.with_name(f"{self.folder.name}.build"))
        )


class _StoredVariants:
    """The variants in a cache, by text."""

    def __init__(self, folder: Path, name: str):
        """Maps the file into memory.

        Raises:
          UserError: it is missing or damaged.
        """
        file = folder / _FILE
        try:
            with pa.memory_map(str(file)) as source:
                table = pa.ipc.open_file(source).read_all().combine_chunks()
            self._texts, self._variants = table["text"], table["variants"]
            self._digests = table["digest"].to_numpy()
        except FileNotFoundError:
            raise UserError(
                f"@{name}() has no variants of these texts: {file} does not exist. "
                "`fmjax train` and `fmjax data cache` make them."
            ) from None
        except (OSError, KeyError, pa.ArrowException) as error:
            raise UserError(
                f"{file} is damaged ({error}). Delete {folder} to make it again."
            ) from error

    def __call__(self, text: str) -> list[str]:
        at = int(np.searchsorted(self._digests, digest := _digest(text)))
        if at == len(self._digests) or self._digests[at] != digest:
            return []
        return self._variants[at].as_py()


def _digest(text: str) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(text.encode()))
