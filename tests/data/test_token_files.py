"""Token streams: flat ones of NumPy, llm.c's, and Megatron's layouts by hand."""

import itertools
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.cli import main as cli
from fmjax.config.load import load_data
from fmjax.data.inspect.file_report import inspect_files
from fmjax.data.sources import token_division
from fmjax.data.sources.token_files import TokenFiles
from fmjax.data.sources.token_formats import flat_tokens, megatron_index
from fmjax.data.sources.token_formats.megatron_index import read_index
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.token_ids import TokenIds
from fmjax.data.tokenizers.tokenizers import load_tokenizer
from fmjax.data.tokenizers.vocabularies import Bytes, Characters, SentencePiece
from fmjax.errors import UserError

EOS = 9


def stream(documents):
    return [token for document in documents for token in [*document, EOS]]


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def mapped(documents, code=8, kind="<u2", sequences=None, modes=False, gap=0):
    """Today's .bin and .idx of documents, each a list of sequences."""
    lengths = [len(sequence) for document in documents for sequence in document]
    size = np.dtype(kind).itemsize
    ends = np.cumsum([length + gap for length in lengths], dtype=np.int64)
    offsets = (ends - lengths - gap) * size
    firsts = np.cumsum([0, *(len(document) for document in documents)], dtype="<i8")
    index = b"MMIDIDX\0\0" + struct.pack("<QB", 1, code)
    index += struct.pack("<QQ", len(lengths), len(firsts))
    index += np.array(lengths, "<i4").tobytes() + offsets.astype("<i8").tobytes()
    index += firsts.tobytes() + bytes(len(lengths)) * modes
    padded = [[*s, *[0] * gap] for document in documents for s in document]
    return np.array(joined(padded), kind).tobytes(), index


def earlier(documents, code=4, kind="<i4"):
    """The .bin and .idx of earlier versions and of fairseq."""
    lengths = [len(sequence) for document in documents for sequence in document]
    firsts = np.cumsum([0, *(len(document) for document in documents)], dtype="<i8")
    count, size = len(lengths), np.dtype(kind).itemsize
    index = b"TNTIDX\0\0" + struct.pack("<QQQ", 1, code, size)
    index += struct.pack("<QQQ", count, count, len(firsts))
    index += np.arange(count + 1, dtype="<i8").tobytes()
    index += np.cumsum([0, *lengths], dtype="<i8").tobytes()
    index += np.array(lengths, "<i8").tobytes() + firsts.tobytes()
    ids = [token for document in documents for s in document for token in s]
    return np.array(ids, kind).tobytes(), index


def write(folder, name, content, index=None):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.bin").write_bytes(content)
    if index is not None:
        (folder / f"{name}.idx").write_bytes(index)


def read(files, size=None, split="train", **options):
    options = {"validation_fraction": 0.0} | options
    source = TokenFiles(str(files), **options)
    source.fingerprint(split)
    division = source.division(split)
    return [
        example.tokens.ids.tolist()
        for part in division.parts(size)
        for example in division.read(part)
    ]


DOCUMENTS = st.lists(st.lists(st.integers(0, 8), max_size=6), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(documents=DOCUMENTS, size=st.sampled_from([None, 1, 5, 16]),
       kind=st.sampled_from(["uint16", "uint32", "int32"]),
       window=st.sampled_from([1, 3, 1 << 20]))  # fmt: skip
def test_documents_of_flat_streams_come_back(
    tmp_path_factory, documents, size, kind, window
):
    folder = tmp_path_factory.mktemp("tokens")
    documents = [*documents, [1, 2, 3, 4, 5, 6, 7, 8]]
    write(folder, "a", np.array(stream(documents), kind).tobytes())
    expected = [document for document in documents if document]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat_tokens, "_WINDOW", window)
        assert read(folder, size, eos_id=EOS, dtype=kind) == expected
    pieces = read(folder, size, dtype=kind)
    assert joined(pieces) == stream(documents)


SEQUENCES = st.lists(st.lists(
    st.lists(st.integers(0, 100), max_size=5), max_size=3,
), min_size=1, max_size=8)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(documents=SEQUENCES, size=st.sampled_from([None, 1, 9]), layout=st.sampled_from([
    (1, "u1"), (2, "i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2"),
]), form=st.sampled_from(["mapped", "modes", "gaps", "earlier"]))  # fmt: skip
def test_documents_of_megatron_come_back(
    tmp_path_factory, documents, size, layout, form
):
    folder = tmp_path_factory.mktemp("megatron")
    options = {"modes": {"modes": True}, "gaps": {"gap": 2}}.get(form, {})
    make = earlier if form == "earlier" else mapped
    documents = [*documents, [[1]]]
    write(folder, "a_text_document", *make(documents, *layout, **options))
    expected = [ids for ids in map(joined, documents) if ids]
    assert read(folder, size) == expected
    # A prefix, as Megatron's own arguments are, and the index itself.
    for name in ("a_text_document", "a_text_document.idx"):
        assert read(folder / name) == expected


def test_the_end_of_a_megatron_document_is_not_doubled(tmp_path):
    write(tmp_path / "a", "a", *mapped([[[1, 2, EOS]], [[3]], [[EOS]]]))
    assert read(tmp_path / "a", eos_id=EOS) == [[1, 2], [3]]
    data = data_of(
        TokenFiles(str(tmp_path / "a"), EOS, validation_fraction=0.0), tmp_path
    )
    assert rows_of(data, "train")[:5] == [1, 2, EOS, 3, EOS]


@pytest.mark.parametrize(("magic", "version", "kind"), [
    (20240520, 1, "<u2"), (20240801, 7, "<u4"),
])  # fmt: skip
def test_headers_of_llm_c_are_read(tmp_path, magic, version, kind):
    ids = np.array(stream([[1, 2], [3]]), kind)
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    write(tmp_path, "a", header.tobytes() + ids.tobytes())
    assert read(tmp_path, eos_id=EOS) == [[1, 2], [3]]
    write(tmp_path, "a", header.tobytes() + ids.tobytes()[:-4])
    with pytest.raises(UserError, match=r"a\.bin has .* its header tells of 5 tokens"):
        read(tmp_path)


def data_of(source, folder, tokenizer=None, **options):
    eos_id = source.eos_id
    tokenizer = tokenizer or TokenIds(vocab_size=200, eos_id=eos_id)
    task = TextTask(source, tokenizer, name="tokens")
    return Data(task, cache_dir=str(folder / "cache"), **{"length": 16} | options)


def rows_of(data, split):
    data.prepare()
    return [
        token
        for batch in data.eval_batches(2, range(2), split=split)
        for row in range(2)
        for token in batch["targets"][row][batch["weights"][row] > 0].tolist()
    ]


def test_rows_are_the_stream_itself(tmp_path):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 9, rng.integers(1, 30)).tolist() for _ in range(40)]
    train, held_out = stream(documents[:35]), stream(documents[35:])
    write(tmp_path / "set", "train", np.array(train, "<u2").tobytes())
    write(tmp_path / "set", "val", np.array(held_out, "<u2").tobytes())
    source = TokenFiles(str(tmp_path / "set"), EOS)
    data = data_of(source, tmp_path)
    assert rows_of(data, "train") == train
    assert rows_of(data, "validation") == held_out
    (cache,) = data.caches("train")
    assert (cache.documents, cache.tokens) == (35, len(train))
    counts, num_bytes = data.target_counts()
    assert counts.tolist() == np.bincount(held_out, minlength=200).tolist()
    assert num_bytes is None
    assert "target_bytes" not in next(iter(data.eval_batches(2, range(2))))
    whole = TokenFiles(str(tmp_path / "set/train.bin"), None, validation_fraction=0.0)
    assert rows_of(data_of(whole, tmp_path), "train") == train[1:]
    packed = data_of(source, tmp_path, rows="packed")
    assert sorted(rows_of(packed, "train")) == sorted(train)


def test_streams_have_the_documents_of_the_files(tmp_path):
    write(tmp_path / "set", "a", *mapped([[[n % 200]] for n in range(64)]))
    source = TokenFiles(str(tmp_path / "set"), validation_fraction=0.0)
    data = data_of(source, tmp_path, length=8, rows="packed", streaming=True,
                   tokenizer=TokenIds(200, eos_id=199))  # fmt: skip
    data.prepare()
    batches = data.train_batches(4, range(4), seed=0)
    try:
        seen = [next(batches)["targets"] for _ in range(4)]
    finally:
        batches.close()
    assert {*range(64)} == {*np.stack(seen).ravel().tolist()} - {199, 0} | {0}


def test_equal_documents_are_held_out_together(tmp_path):
    documents = [[n % 60, n % 7] for n in range(200)]
    write(tmp_path / "set", "a", *mapped([[document] for document in documents]))
    both = [read(tmp_path / "set", split=split, validation_fraction=0.2)
            for split in ("train", "validation")]  # fmt: skip
    train, held_out = ({tuple(ids) for ids in found} for found in both)
    assert not train & held_out
    assert sorted(joined(both)) == sorted(documents)


def test_nothing_that_is_validated_or_tested_on_is_trained_on(tmp_path, capsys):
    own = tmp_path / "set"
    contents = {"train": [1, 2], "val": [3, 4], "test": [5, 6], "train_again": [7, 8]}
    for name, ids in contents.items():
        write(own, name, np.array(ids, "<u2").tobytes())
    # A copy of train_again.bin, of another name and folder.
    write(tmp_path / "other", "held", np.array([7, 8], "<u2").tobytes())
    options = {"validation_files": str(tmp_path / "other"), "validation_fraction": None}
    assert read(own, **options) == [[1, 2]]
    assert read(own, split="validation", **options) == [[7, 8]]
    assert "1 of the 2 files" in capsys.readouterr().err
    # Without regard to names, all others are trained on.
    source = TokenFiles(
        str(own), split="hash", validation_files=options["validation_files"]
    )
    division = source.division("train")
    found = [e.tokens.ids.tolist() for p in division.parts() for e in division.read(p)]
    assert sorted(found) == [[1, 2], [3, 4], [5, 6]]


def test_a_megatron_copy_is_one_with_an_equal_index(tmp_path):
    both = [[[1, 2]], [[3, 4]]]
    write(tmp_path / "set", "a", *mapped(both))
    write(tmp_path / "set", "b", *mapped([[[1, 2], [3, 4]]]))
    write(tmp_path / "held", "c", *mapped(both))
    options = {"validation_files": str(tmp_path / "held"), "validation_fraction": None}
    assert read(tmp_path / "set", **options) == [[1, 2, 3, 4]]
    (tmp_path / "set" / "b.bin").unlink()
    with pytest.raises(UserError, match=r"token_files\.files = .* nothing to train on"):
        read(tmp_path / "set", **options)


def test_blocks_of_a_stream_without_documents_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(token_division, "PIECE", 100)
    ids = np.random.default_rng(0).integers(0, 200, 100_000)
    write(tmp_path / "set", "a", ids[:70_000].astype("<u2").tobytes())
    write(tmp_path / "set", "b", ids[70_000:].astype("<u2").tobytes())
    for size in (None, 1000):
        parts = {
            split: joined(read(tmp_path / "set", size, split, validation_fraction=0.1))
            for split in ("train", "validation")
        }
        assert abs(len(parts["validation"]) / 100_000 - 0.1) < 0.01
        assert sorted(joined(parts.values())) == sorted(ids.tolist())


def test_ids_outside_of_the_vocabulary_are_named_with_their_place(tmp_path):
    documents = [[1] * 9] * 40
    content = np.array(stream(documents), "<u2")
    content[205] = 7777
    write(tmp_path / "set", "a", content.tobytes())
    source = TokenFiles(str(tmp_path / "set"), EOS, validation_fraction=0.0)
    data = data_of(source, tmp_path, max_corrupt_fraction=0.05)
    data.prepare()
    (cache,) = data.caches("train")
    (named,) = cache.skipped_names
    assert named.startswith(
        "tokens train: a.bin, token 200 has the id 7777 at token 205"
    )
    assert named.endswith("; expected ids from 0 to 199")
    content[10::10] = 7777
    write(tmp_path / "set", "a", content.tobytes())
    with pytest.raises(UserError, match=r"39 of 40 examples of tokens"):
        data_of(source, tmp_path).prepare()


def test_files_that_are_not_what_they_claim_are_refused(tmp_path):
    ids = np.arange(1, 40)
    write(tmp_path, "a", ids.astype("<u4").tobytes())
    with pytest.raises(UserError, match=r"every second id is 0.*dtype='uint32'"):
        read(tmp_path)
    write(tmp_path, "a", ids.astype("<u2").tobytes()[:-1])
    with pytest.raises(
        UserError, match=r"77 bytes, which is no whole number of ids of"
    ):
        read(tmp_path)
    write(tmp_path, "a", b"")
    with pytest.raises(UserError, match="there are no tokens"):
        read(tmp_path)
    content, index = mapped([[[1, 2]], [[3]]])
    cases = {
        "is no index of Megatron: it begins with b'PAR1": b"PAR1" + index,
        "has only 20 bytes": index[:20],
        "version 2; expected 1": index[:9] + struct.pack("<Q", 2) + index[17:],
        "dtype code 6 is of floats": index[:17] + b"\6" + index[18:],
        "dtype code 9; expected one of 1": index[:17] + b"\x09" + index[18:],
        "bytes; expected": index + b"more",
        "documents that are not those of 2": index[:-8] + struct.pack("<q", 1),
        "is no multiple of the bytes": index.replace(struct.pack("<q", 4),
                                                     struct.pack("<q", 3), 1),
    }  # fmt: skip
    for match, damaged in cases.items():
        write(tmp_path, "a", content, damaged)
        with pytest.raises(UserError, match=match):
            read(tmp_path)
    write(tmp_path, "a", content[:-2], index)
    with pytest.raises(UserError, match=r"ends beyond the 4 bytes of a\.bin"):
        read(tmp_path)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), form=st.sampled_from([mapped, earlier]))
def test_damaged_indices_are_refused_or_stay_inside_of_their_file(
    tmp_path_factory, data, form
):
    content, index = form([[[1, 2], [3]], [[4]], []])
    damaged = bytearray(index)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    cut = data.draw(st.sampled_from([len(damaged), len(damaged) - 1, 8, 0]))
    file = tmp_path_factory.mktemp("damaged") / "a.idx"
    file.write_bytes(damaged[:cut])
    chunk = data.draw(st.sampled_from([1, 2, 1 << 20]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron_index, "_CHUNK", chunk)
        try:
            found = read_index(file, len(content))
        except UserError:
            return
    tokens = len(content) // found.dtype.itemsize
    ranges = [own for n in range(len(found.documents) - 1) for own in found.ranges(n)]
    assert len(ranges) == len(found.lengths)
    assert all(0 <= start <= stop <= tokens for start, stop in ranges)


def test_the_vocabulary_must_be_named(tmp_path):
    write(tmp_path / "set", "a", np.arange(40).astype("<u2").tobytes())
    source = TokenFiles(str(tmp_path / "set"), validation_fraction=0.0)
    for tokenizer in (SentencePiece(), Characters()):
        with pytest.raises(UserError, match="would be made of text, but @token_files"):
            TextTask(source, tokenizer)
    with pytest.raises(UserError, match=r"eos_id = 9, but that of .* is 1; expected"):
        data_of(TokenFiles(source.files, EOS), tmp_path, Bytes()).prepare()
    with pytest.raises(UserError, match=r"token_ids\.eos_id = 200"):
        TokenIds(200, eos_id=200)


def test_a_stream_with_an_end_that_is_not_bound_is_told_of(tmp_path, capsys):
    write(tmp_path / "set", "a", np.full(40, 5).astype("<u2").tobytes())
    source = TokenFiles(str(tmp_path / "set"), validation_fraction=0.0)
    data_of(source, tmp_path, TokenIds(200, eos_id=77)).prepare()
    told = capsys.readouterr().err
    assert "cut every 1,048,576 tokens, with EOS (77) at each cut" in told
    assert "bind token_files.eos_id=77" in told


def test_pieces_of_a_stream_without_documents_have_their_own_ends(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(token_division, "PIECE", 16)
    ids = np.random.default_rng(0).integers(0, 70, 40).tolist()
    write(tmp_path / "set", "a", np.array(ids, "<u2").tobytes())
    source = TokenFiles(str(tmp_path / "set"), validation_fraction=0.0)
    data = data_of(source, tmp_path, TokenIds(200, eos_id=77, bos_id=78))
    pieces = [[78, *piece, 77] for piece in (ids[:16], ids[16:32], ids[32:])]
    assert rows_of(data, "train") == joined(pieces)[1:]


def test_ids_are_saved_and_written_as_texts(tmp_path):
    tokenizer = TokenIds(200, eos_id=9, bos_id=8).build(None, None)
    assert tokenizer.encode(" 17 4\n0") == [17, 4, 0]
    assert tokenizer.decode([8, 17, 4, 0, 9, 300, -1]) == "17 4 0"
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.digest == tokenizer.digest
    assert (again.bos_id, again.eos_id, again.vocab_size) == (8, 9, 200)
    for text in ("17 x", "200", "-1"):
        with pytest.raises(UserError, match="expected ids below 200"):
            tokenizer.encode(text)


def test_three_lines_of_gin_are_enough_to_inspect_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    documents = [[n % 60 + 10] * 20 for n in range(100)]
    write(tmp_path / "set", "train", np.array(stream(documents), "<u2").tobytes())
    config = tmp_path / "mine.gin"
    config.write_text(
        f"include 'data/token_files.gin'\nTOKENS = '{tmp_path}/set'\nEOS_ID = {EOS}\n"
    )
    assert load_data(str(config)).train.tokenizer.eos_id == EOS
    assert cli.main(["data", "inspect", str(config), "data.length=32"]) == 0
    assert re.search(r"(\d+) \1 \1 ", capsys.readouterr().out)


# Documents whose ids are as frequent as words are, with EOS of GPT-2's vocabulary.
ZIPF = [
    np.minimum(np.random.default_rng(i).zipf(1.3, 60), 50_000).tolist()
    for i in range(50)
]
GPT2_STREAM = [token for document in ZIPF for token in [*document, 50256]]


def header_of_llm_c(magic, count):
    head = np.zeros(256, "<i4")
    head[:3] = magic, 1, count
    return head.tobytes()


@pytest.mark.parametrize(
    ("form", "kind", "make"),
    [
        ("flat token stream", "uint16", lambda a: (a.astype("<u2").tobytes(), None)),
        ("flat token stream", "uint32", lambda a: (a.astype("<u4").tobytes(), None)),
        (
            "token stream of llm.c",
            "uint16",
            lambda a: (
                header_of_llm_c(20240520, len(a)) + a.astype("<u2").tobytes(),
                None,
            ),
        ),
        (
            "token stream of Megatron",
            "uint16",
            lambda a: mapped([[[*document, 50256]] for document in ZIPF]),
        ),
    ],
)
def test_streams_are_inspected_and_the_gin_trains_on_them(
    tmp_path, monkeypatch, form, kind, make
):
    monkeypatch.setenv("FMJAX_CACHE", str(tmp_path / "cache"))
    ids = np.array(GPT2_STREAM)
    write(tmp_path / "tokens", "corpus", *make(ids))
    report = inspect_files(str(tmp_path / "tokens"))
    assert report.format.startswith(form)
    assert report.others == {}
    assert report.total == len(ids)
    found = report.tokens
    assert (found.dtype, found.looked_at) == (kind, len(ids))
    assert (found.distinct, found.highest) == (len({*GPT2_STREAM}), 50256)
    assert (found.eos_id, found.vocab_size) == (50256, 50257)
    assert found.documents == (50 if "Megatron" in form else None)
    assert any("50256" in line for line in found.lines())
    (tmp_path / "mine.gin").write_text(report.gin + "\n")
    data = load_data(str(tmp_path / "mine.gin"), ["data.length=16"])
    data.prepare()
    batches = data.train_batches(2, range(2), 0)
    assert {*next(batches)["targets"].ravel().tolist()} <= {*GPT2_STREAM}
    batches.close()


def test_a_bin_of_no_ids_is_told_from_a_stream_by_how_frequent_they_are(tmp_path):
    noise = np.random.default_rng(0).bytes(1 << 16)
    write(tmp_path / "a", "weights", noise)
    with pytest.raises(UserError, match="of no kind that is known"):
        inspect_files(str(tmp_path / "a"))
    write(tmp_path / "b", "train", noise)
    assert inspect_files(str(tmp_path / "b")).tokens.distinct > 20_000
