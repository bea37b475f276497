"""A machine for the pickles in PyTorch's files, which builds tensors and runs nothing.

A pickle is a program for a stack machine; that of Python's `pickle` calls any function
that a file names. The one here knows some forty operations, and calls none but the few
functions below, which make records of tensors. Whatever else a file names is refused by
its name. It neither compares nor hashes what it builds, except for keys, which have to
be strings or small numbers: so its time is that of reading the file.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    # Of bytes: its tensors say their dtype.
    "UntypedStorage": "uint8",
}
_MOST_AXES = 32
# Maximum of numbers that are counted with, and of keys: larger ones could be made such
# that they take long to multiply, or all have the same hash.
_MOST, _MOST_KEY = 1 << 62, 1 << 32


class Refused(Exception):
    """A pickle asks for something that is no part of a tensor, or is damaged."""


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """A flat array in the file.

    Attributes:
      key: its name in the file.
      dtype: of its elements.
      count: number of elements.
    """

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A tensor, a view of a storage; offset and strides are counted in elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Named:
    """A name of a module that the file uses, and what it stands for here."""

    name: str
    means: Any


class Pickled(NamedTuple):
    """What a pickle describes.

    Attributes:
      value: dictionaries, lists, tuples, strings, numbers, and each tensor as a `View`.
      storages: all storages by their keys.
    """

    value: Any
    storages: dict[str, Storage]


def run(file: BinaryIO) -> Pickled:
    """Reads a file to the end of its pickle and returns what that describes.

    Raises:
      Refused: the pickle names something else, or is none.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "STOP":
                return Pickled(machine.pop(), machine.storages)
            machine.do(operation.name, argument)
    except Refused:
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise Refused(f"is damaged: {type(error).__name__}: {error!s:.100}") from error
    raise Refused("is damaged: its pickle has no end")


class _Machine:
    """The stack, its marks, and the memory of a pickle."""

    def __init__(self):
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def do(self, name: str, argument: Any) -> None:
        """Does one operation; see `pickletools` for what each means."""
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if argument is None else argument] = self.top()
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(self.stack))
        elif name not in ("PROTO", "FRAME"):
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        if name == "TUPLE":
            self.stack.append(tuple(self.pop_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            parts = [self.pop() for _ in range(int(name[-1]))]
            self.stack.append(tuple(reversed(parts)))
        elif name in ("APPEND", "APPENDS"):
            items = [self.pop()] if name == "APPEND" else self.pop_mark()
            _expect(self.top(), list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.pop_mark() if name == "SETITEMS" else [self.pop(), self.pop()]
            if name == "SETITEM":
                items.reverse()
            _set_items(_expect(self.top(), dict), items)
        elif name == "GLOBAL":
            self.stack.append(_find(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            self.stack.append(_find(_expect(module, str), _expect(attribute, str)))
        elif name == "REDUCE":
            arguments, function = _expect(self.pop(), tuple), self.pop()
            self.stack.append(_call(function, arguments))
        elif name == "BUILD":
            self.pop()  # Attributes of a dictionary: versions of modules.
            _expect(self.top(), (dict, View))
        elif name == "BINPERSID":
            storage = _storage(self.pop())
            if self.storages.setdefault(storage.key, storage).dtype != storage.dtype:
                raise Refused("has a storage of two dtypes")
            self.stack.append(storage)
        elif name == "POP":
            self.pop()
        else:
            raise Refused(f"has the operation {name} of pickle, which no tensor needs")

    def top(self) -> Any:
        """The uppermost object; only those above the last mark can be taken."""
        if len(self.stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("an empty stack")
        return self.stack[-1]

    def pop(self) -> Any:
        """Takes the uppermost object."""
        self.top()
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Takes all objects above the last mark."""
        mark = self._marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken


_PUSHED = frozenset(
    """
    BINBYTES BINFLOAT BININT BININT1 BININT2 BINSTRING BINUNICODE BINUNICODE8 LONG1
    LONG4 SHORT_BINBYTES SHORT_BINSTRING SHORT_BINUNICODE
    """.split()  # noqa: SIM905
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NEWFALSE": lambda: False,
    "NEWTRUE": lambda: True,
    "NONE": lambda: None,
}


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise Refused(f"is damaged: a {type(value).__name__} where none belongs")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise Refused("is damaged: a size or an offset that is none")
    return value


def _set_items(target: dict, items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(_expect(key, (str, int)), int) and abs(key) > _MOST_KEY:
            raise Refused("has a number as a key that is no name")
        target[key] = value


def _find(module: str, attribute: str) -> _Named:
    name = f"{module}.{attribute}"
    if name in _FUNCTIONS:
        return _Named(name, _FUNCTIONS[name])
    if module in ("torch", "torch.storage") and attribute in _STORAGES:
        return _Named(name, attribute)
    if module == "torch" and attribute in DTYPES:
        return _Named(name, np.dtype(DTYPES[attribute]))
    if name in _CLASSES:
        return _Named(name, None)
    raise Refused(
        f"asks for {name:.100}, which is no part of a tensor; nothing was run"
    )


def _call(function: Any, arguments: tuple) -> Any:
    called = _expect(function, _Named)
    if not callable(called.means) or isinstance(called.means, np.dtype):
        raise Refused(f"calls {called.name}, which no tensor needs; nothing was run")
    return called.means(*arguments)


def _storage(identity: Any) -> Storage:
    kind, named, key, _, count, *view = _expect(identity, tuple)
    if kind != "storage" or any(each is not None for each in view):
        raise Refused("has a reference that is none to a storage")
    means = _expect(named, _Named).means
    if not isinstance(means, str):
        raise Refused(f"has a storage of {named.name}; expected one of numbers")
    dtype = np.dtype(DTYPES[_STORAGES[means]])
    return Storage(_expect(key, str), dtype, _number(count))


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View:
    """`torch._utils._rebuild_tensor_v2`, and its versions before and after.

    The rest is whether it has gradients, hooks, since version 3 its dtype, and bits
    such as that of negation.
    """
    stored = _expect(storage, Storage)
    dtype = stored.dtype
    for value in rest:
        if isinstance(value, _Named):
            dtype = _expect(value.means, np.dtype)
        elif isinstance(value, dict) and value:
            raise Refused("has a tensor with hooks or bits; expected plain numbers")
    axes = [_expect(each, (tuple, list)) for each in (shape, strides)]
    if len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise Refused("is damaged: a tensor without a stride for each axis")
    for number in (offset, *axes[0], *axes[1]):
        _number(number)
    size = math.prod(shape)
    available = stored.count * stored.dtype.itemsize // dtype.itemsize
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if size and last >= available:
        raise Refused("is damaged: a tensor beyond its storage")
    if size > available:
        raise Refused(
            f"has a tensor of {size:,} elements on a storage of {available:,}; "
            "expected none that repeats them"
        )
    return View(stored, dtype, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *_: Any) -> View:
    """`torch._utils._rebuild_parameter`."""
    return _expect(data, View)


def _of_class(function: Any, kind: Any, arguments: Any, *_: Any) -> View:
    """`torch._tensor._rebuild_from_type_v2`."""
    if (name := _expect(kind, _Named).name) not in _CLASSES:
        raise Refused(f"has a tensor of the class {name}; expected a plain one")
    return _expect(_call(function, _expect(arguments, tuple)), View)


def _short(items: Any) -> list | tuple:
    """A list that a call may copy: a file could repeat the call at six bytes each."""
    if len(_expect(items, (list, tuple))) > _MOST_AXES:
        raise Refused(f"calls with a list of {len(items):,} items; nothing was run")
    return items


def _dictionary(items: Any = ()) -> dict:
    """`collections.OrderedDict`; torch fills them by operations of their own."""
    made: dict = {}
    for item in _short(items):
        key, value = _expect(item, (list, tuple))
        _set_items(made, [key, value])
    return made


_CLASSES = {
    "torch.Tensor",
    "torch._tensor.Tensor",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.Parameter",
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dictionary,
    "torch.Size": lambda sizes=(): tuple(_short(sizes)),
    "torch.device": lambda *name: None,
    "torch._tensor._rebuild_from_type_v2": _of_class,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor_v3": _view,
}
