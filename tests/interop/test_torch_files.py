"""Files of torch.save, read without torch, against what torch wrote."""

import io
import os
import pathlib
import pickle
import zipfile

import hypothesis
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from fmjax.errors import UserError
from fmjax.interop.containers.pickle_machine import Refused, run
from fmjax.interop.containers.torch_files import read_file

FORMATS = pytest.mark.parametrize("archive", [True, False], ids=["zip", "older"])
TABLE = torch.arange(24.0).reshape(4, 6)
STATE = {
    "table": TABLE,
    "turned": TABLE.T,
    "strided": TABLE[1:3, ::2],
    "shared": TABLE.view(-1)[5:],
    "empty": torch.zeros(0, 3),
    "one": torch.tensor(2.5),
    "parameter": torch.nn.Parameter(torch.tensor([1.0, -2.0])),
    "double": torch.tensor([0.1], dtype=torch.float64),
    "half": torch.tensor([0.1, 6e4]).half(),
    "bfloat16": torch.tensor([0.1, -3e38, 1e-20]).bfloat16(),
    "float8_e4m3fn": torch.tensor([0.1, -448.0, 3.0]).to(torch.float8_e4m3fn),
    "float8_e5m2": torch.tensor([0.1, 57344.0]).to(torch.float8_e5m2),
    "float8_e8m0fnu": torch.tensor([0.5, 4.0]).to(torch.float8_e8m0fnu),
    "int64": torch.tensor([2**60]),
    "int8": torch.tensor([-3, 100], dtype=torch.int8),
    "uint16": torch.tensor([65535], dtype=torch.uint16),
    "bool": torch.tensor([True, False]),
}


def saved(folder, content, archive=True):
    file = folder / "pytorch_model.bin"
    torch.save(content, file, _use_new_zipfile_serialization=archive)
    return file


@FORMATS
def test_tensors_are_those_that_torch_wrote(tmp_path, archive):
    found = read_file(saved(tmp_path, STATE, archive))
    assert list(found) == list(STATE)
    for name, expected in STATE.items():
        array = found[name].read()
        assert array.shape == found[name].shape == tuple(expected.shape)
        assert array.dtype == found[name].dtype
        np.testing.assert_array_equal(
            array.astype(np.float64), expected.detach().double().numpy(), err_msg=name
        )
    assert found["bfloat16"].dtype == ml_dtypes.bfloat16
    # Views of one storage count once.
    assert {found[n].storage for n in ("table", "turned", "strided", "shared")} == {
        found["table"].storage
    }


@FORMATS
def test_checkpoints_of_training_have_the_model_inside(tmp_path, archive):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {"epoch": 3, "state_dict": model.state_dict()}
    content["optimizer"] = optimizer.state_dict()
    found = read_file(saved(tmp_path, content, archive))
    assert list(found) == ["weight", "bias"]
    np.testing.assert_array_equal(found["weight"].read(), model.weight.detach().numpy())


@FORMATS
def test_pickles_of_python_3_and_later_protocols_are_read(tmp_path, archive):
    file = tmp_path / "pytorch_model.bin"
    for protocol in (2, 3, 4, 5):
        torch.save(
            STATE,
            file,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=archive,
        )
        assert list(read_file(file)) == list(STATE)


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@FORMATS
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch executed",), f"{os.system.__module__}.system"),
        (eval, ("open('executed', 'w')",), "eval"),
        (getattr, (os, "system"), "getattr"),
        (pathlib.Path, ("executed",), "pathlib"),
        (io.open, ("executed", "w"), "open"),
        (torch.load, ("executed",), "torch.serialization.load"),
        (torch.hub.load, ("executed",), "torch.hub.load"),
    ],
)
def test_what_would_run_code_is_refused_by_its_name(
    tmp_path, monkeypatch, archive, function, arguments, named
):
    monkeypatch.chdir(tmp_path)
    arguments = tuple(a if isinstance(a, str) else str(a) for a in arguments)
    bad = STATE | {"bad": Calls(function, *arguments)}
    with pytest.raises(UserError, match=f"{named}.*nothing was run"):
        read_file(saved(tmp_path, bad, archive))
    assert not (tmp_path / "executed").exists()


@FORMATS
def test_whole_models_are_refused_by_the_name_of_their_class(tmp_path, archive):
    with pytest.raises(UserError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_file(saved(tmp_path, torch.nn.Linear(2, 2), archive))


@FORMATS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list"),
        ({"a": 3}, "has no tensors"),
        ({"a": torch.ones(2), "layers": [torch.ones(2)]}, "has 'layers', which is no"),
        ({"a": torch.zeros(1).expand(1000)}, "1,000 elements on a storage of 1"),
        ({"a": torch.ones(2).to_sparse()}, "_rebuild_sparse_tensor"),
        ({str(i): TABLE[:] for i in range(20)}, "480 elements on 24 numbers"),
    ],
)
def test_what_is_no_model_by_names_is_refused(tmp_path, archive, content, message):
    with pytest.raises(UserError, match=message):
        read_file(saved(tmp_path, content, archive))


def test_files_of_big_endian_machines_are_refused(tmp_path):
    file = saved(tmp_path, STATE)
    other = tmp_path / "other.bin"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(other, "w") as new:
        for info in old.infolist():
            big = info.filename.endswith("/byteorder")
            new.writestr(info, b"big" if big else old.read(info))
    with pytest.raises(UserError, match="big-endian machine"):
        read_file(other)
    content = saved(tmp_path, STATE, archive=False).read_bytes()
    key = b"little_endian"
    at = content.index(key) + len(key)
    turned = content[:at] + content[at:].replace(b"\x88", b"\x89", 1)
    other.write_bytes(turned)
    with pytest.raises(UserError, match="big-endian machine"):
        read_file(other)


def test_compressed_archives_are_refused(tmp_path):
    file, other = saved(tmp_path, STATE), tmp_path / "other.bin"
    with (
        zipfile.ZipFile(file) as old,
        zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    with pytest.raises(UserError, match="compressed or encrypted"):
        read_file(other)


def doubled(times: int) -> bytes:
    """A pickle whose tuple has 2 ** times leaves in few bytes."""
    return b"\x80\x02)" + b"2\x86" * times + b"."


@pytest.mark.parametrize(
    "content",
    [
        doubled(100),
        b"\x80\x02}" + doubled(60)[2:-1] + b"K\x01s.",  # As a key, which is hashed.
        b"\x80\x02]q\x00h\x00a.",  # A list in itself.
        b"\x80\x02\x8b\x00\x00\x00\x10"
        + b"\x7f" * 1000
        + b".",  # An unfinished number.
        b"\x80\x02cbuiltins\nlist\n)R.",
        b"(" * 100_000 + b".",
        pickle.dumps({2**61 - 1 + (2**61 - 1) * i: 1 for i in range(1000)}, 2),
    ],
)
def test_pickles_made_to_take_long_are_refused(tmp_path, content):
    file = tmp_path / "x.bin"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", content)
    with pytest.raises(UserError, match=r"x\.bin"):
        read_file(file)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.bin"):
        read_file(file)


@FORMATS
@hypothesis.settings(max_examples=150, deadline=2000)
@hypothesis.given(
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)),
        min_size=1,
        max_size=6,
    ),
    in_pickle=st.booleans(),
)
def test_damaged_files_are_refused_or_give_tensors(
    tmp_path_factory, archive, edits, in_pickle
):
    folder = tmp_path_factory.mktemp("damaged")
    file = saved(folder, STATE, archive)
    content = bytearray(file.read_bytes())
    start, end = 0, len(content)
    if in_pickle:  # Which is a small part of the file.
        start = content.index(b"table") - 40
        end = content.index(b"uint16")
    for place, new in edits:
        at = start + int(place * (end - start - 1))
        content[at : at + len(new)] = new
    file.write_bytes(content)
    try:
        found = read_file(file)
    except UserError:
        return
    for tensor in found.values():
        assert tensor.read().shape == tensor.shape


@pytest.mark.parametrize("name", ["torch.Size", "collections.OrderedDict"])
def test_a_list_that_calls_would_copy_again_and_again_is_refused(name):
    module, attribute = name.rsplit(".", 1)
    items = [("a", 1)] * 1000
    # A call of the function with the list, as often as a file has room for six bytes.
    listed = pickle.dumps(items, 2)[2:-1] + b"q\xff0"
    function = f"c{module}\n{attribute}\n".encode()
    content = b"\x80\x02" + listed + (function + b"h\xff\x85R0") * 3 + b"N."
    with pytest.raises(Refused, match="calls with a list of 1,000 items"):
        run(io.BytesIO(content))
