"""Files of `torch.save`, read without torch: a zip archive, or the older format.

The newer one (since PyTorch 1.6) is a zip archive of a pickle and of a file for each
storage, uncompressed. The older one is a row of pickles followed by the storages.
"""

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.containers import pickle_machine
from fmjax.interop.containers.pickle_machine import Refused, View
from fmjax.interop.containers.stored_tensor import StoredTensor

_ZIP, _TAR = b"PK\x03\x04", b"ustar"
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
# Maximum bytes of a pickle, which holds no numbers of tensors.
_MOST_BYTES = 1 << 28
_LONGEST_LINE = 1000
# Where checkpoints of training have the tensors.
_INSIDE = ("state_dict", "model", "module", "model_state_dict")
# Tensors may share numbers, as a tied head does; but not more often than this, for then
# a small file makes a large model.
_MOST_SHARED = 16
# What `zipfile` and lookups raise for damaged files.
_ERRORS = (
    *(EOFError, LookupError, NotImplementedError, OverflowError, RuntimeError),
    *(ValueError, struct.error),
)


def read_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a file of `torch.save`, by name; nothing in it is run.

    Raises:
      UserError: it is not such a file, is damaged, was written on a big-endian machine,
        or holds something else than tensors by name.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(262)
        if start.startswith(_ZIP):
            values, places = _read_zip(file)
        elif start[257:] == _TAR:
            raise Refused("is in the tar format of PyTorch before 0.1.10")
        else:
            values, places = _read_older(file)
        return _tensors(file, values, places)
    except (OSError, zipfile.BadZipFile, *_ERRORS) as error:
        raise UserError(f"{file} is damaged: {error!r:.200}.") from error
    except Refused as error:
        raise UserError(
            f"{file} {error}. Expected tensors by name, as torch.save(model."
            "state_dict(), …) writes them, or safetensors."
        ) from error


def _read_zip(file: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The pickle's content, and the offset and length of each storage in bytes."""
    with zipfile.ZipFile(file) as archive, file.open("rb") as opened:
        entries = {info.filename: info for info in archive.infolist()}
        roots = [n.removesuffix("data.pkl") for n in entries if _is_root(n)]
        if len(roots) != 1:
            raise Refused(f"is a zip archive with {len(roots)} files data.pkl, not one")
        root = roots[0]

        def content(name: str) -> bytes:
            start, length = _place(file, opened, entries[root + name])
            if length > _MOST_BYTES:
                raise Refused(f"has {name} of {length:,} bytes")
            opened.seek(start)
            return opened.read(length)

        if f"{root}byteorder" in entries and content("byteorder") != b"little":
            raise Refused("was written on a big-endian machine, which is not supported")
        places = {
            name.removeprefix(f"{root}data/"): _place(file, opened, info)
            for name, info in entries.items()
            if name.startswith(f"{root}data/")
        }
        return pickle_machine.run(io.BytesIO(content("data.pkl"))).value, places


def _is_root(name: str) -> bool:
    """Whether an entry is the archive's pickle, in its only folder."""
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


def _place(file: Path, opened: Any, info: zipfile.ZipInfo) -> tuple[int, int]:
    """The offset and length of an entry's bytes in the file."""
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise Refused(
            f"has {info.filename:.100} compressed or encrypted; PyTorch writes neither"
        )
    opened.seek(info.header_offset)
    header = opened.read(30)
    if len(header) < 30 or header[:4] != _ZIP:
        raise Refused("is damaged: an entry of the archive without its header")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    if start + info.file_size > file.stat().st_size:
        raise Refused("is damaged: an entry of the archive beyond its end")
    return start, info.file_size


def _read_older(file: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The same of the format before PyTorch 1.6."""
    with file.open("rb") as opened:
        limited = _Limited(opened)
        magic = pickle_machine.run(limited).value
        if type(magic) is not int or magic != _MAGIC:
            raise Refused("is no file of torch.save")
        version = pickle_machine.run(limited).value
        if type(version) is not int or version != _VERSION:
            raise Refused(f"is of another version of the format than {_VERSION}")
        system = pickle_machine.run(limited).value
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Refused("was written on a big-endian machine, which is not supported")
        values, storages = pickle_machine.run(limited)
        keys = pickle_machine.run(limited).value
        places, end = {}, file.stat().st_size
        if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
            raise Refused("is damaged: no names of storages")
        for key in keys:
            # The number of its elements, and then these.
            start = opened.tell() + 8
            count = int.from_bytes(opened.read(8), "little")
            size = storages[key].dtype.itemsize * count
            if start + size > end:
                raise Refused("is damaged: it ends within its tensors")
            places[key] = start, size
            opened.seek(start + size)
    return values, places


class _Limited:
    """A file of which only so much is read as a pickle may have."""

    def __init__(self, file: Any):
        self._file, self._left = file, _MOST_BYTES

    def read(self, size: int = -1) -> bytes:
        """Reads bytes; fewer at the end of the file."""
        if size < 0 or size > self._left:
            raise Refused(f"has a pickle of more than {_MOST_BYTES:,} bytes")
        self._left -= size
        return self._file.read(size)

    def readline(self, size: int | None = -1) -> bytes:
        """Reads a line; none is as long as the limit."""
        self._left -= _LONGEST_LINE
        return self._file.readline(_LONGEST_LINE)


def _entries(values: Any) -> dict[str, View]:
    """The tensors by name, of a state dict or of one inside a checkpoint."""
    if not isinstance(values, dict):
        raise Refused(f"holds a {type(values).__name__}")
    inside = [values[name] for name in _INSIDE if isinstance(values.get(name), dict)]
    if inside and not any(isinstance(value, View) for value in values.values()):
        (values, *_) = inside
    found = {n: value for n, value in values.items() if isinstance(value, View)}
    others = [name for name, value in values.items() if _matters(value)]
    if others or not found or not all(isinstance(name, str) for name in found):
        what = f"{others[0]!r:.100}, which is no tensor" if others else "no tensors"
        raise Refused(f"has {what}")
    return found


def _matters(value: Any) -> bool:
    """Whether a value beside tensors may be a part of a model, as a list of them is."""
    return isinstance(value, (dict, list, tuple)) and bool(value)


def _tensors(
    file: Path, values: Any, places: dict[str, tuple[int, int]]
) -> dict[str, StoredTensor]:
    found = _entries(values)
    total = {view.storage.key: view.storage.count for view in found.values()}
    sizes = sum(int(np.prod(view.shape, dtype=object)) for view in found.values())
    if sizes > _MOST_SHARED * sum(total.values()):
        raise Refused(
            f"has tensors of {sizes:,} elements on {sum(total.values()):,} numbers"
        )
    return dict(_stored(file, found, places))


def _stored(
    file: Path, found: dict[str, View], places: dict[str, tuple[int, int]]
) -> Iterator[tuple[str, StoredTensor]]:
    for name, view in found.items():
        storage = view.storage
        if storage.key not in places:
            raise Refused(f"is damaged: no storage {storage.key:.50} of {name:.100}")
        start, length = places[storage.key]
        if length < storage.count * storage.dtype.itemsize:
            raise Refused(f"is damaged: the storage of {name:.100} is too short")
        yield (
            name,
            StoredTensor(
                view.shape,
                view.dtype,
                _reader(file, start, length, view),
                storage=(file, storage.key),
                numbers=storage.count * storage.dtype.itemsize // view.dtype.itemsize,
            ),
        )


def _reader(file: Path, start: int, length: int, view: View) -> Any:
    def read() -> np.ndarray:
        if 0 in view.shape or not length:
            return np.zeros(view.shape, view.dtype)
        # Mapped for each tensor, as safetensors are.
        mapped = np.memmap(file, np.uint8, "r", start, (length,))
        width = view.dtype.itemsize
        return np.ndarray(
            view.shape,
            view.dtype,
            mapped,
            view.offset * width,
            tuple(stride * width for stride in view.strides),
        )

    return read
