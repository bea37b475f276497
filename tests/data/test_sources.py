import pytest

from fmjax.data.sources import source as sources
from fmjax.data.sources.stdlib import PythonStdlib, _stdlib_packages
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.sources.tfds import Tfds
from fmjax.errors import UserError


def texts(source, split):
    return [text.decode() for _, text in source.documents(split)]


@pytest.fixture
def book(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("one\ntwo\n\nthree\n   \nfour\nfive\n", encoding="utf-8")
    return str(file)


def test_a_file_is_split_at_nine_tenths_as_nanogpt_does(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1115394 // 1000))
    (tmp_path / "t.txt").write_text(text)
    source = TextFiles(str(tmp_path / "t.txt"), split="tail")
    n = int(0.9 * len(text))
    assert texts(source, "train") == [text[:n]]
    assert texts(source, "validation") == [text[n:]]


def test_tinyshakespeare_has_nanogpts_counts(shared_data):
    file = str(shared_data / "text" / "tinyshakespeare.txt")
    source = TextFiles(file, split="tail")
    # The counts that nanoGPT's data/shakespeare_char/prepare.py prints.
    assert len(texts(source, "train")[0]) == 1_003_854
    assert len(texts(source, "validation")[0]) == 111_540


def test_a_cut_never_splits_a_character(tmp_path):
    (tmp_path / "t.txt").write_text("ä€😀" * 7)
    for fraction in (0.05, 0.1, 0.2, 0.35, 0.5, 0.77):
        source = TextFiles(
            str(tmp_path / "t.txt"), validation_fraction=fraction, split="tail"
        )
        parts = texts(source, "train") + texts(source, "validation")
        assert "".join(parts) == "ä€😀" * 7


def test_large_files_are_several_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DOCUMENT_BYTES", 10)
    text = "one\ntwo\nthree\nä" + "字" * 9
    (tmp_path / "t.txt").write_text(text)
    source = TextFiles(str(tmp_path / "t.txt"), validation_fraction=0.0)
    parts = texts(source, "train")
    assert "".join(parts) == text
    assert parts[:2] == ["one\ntwo\n", "three\n"]
    assert max(len(part.encode()) for part in parts) <= 10
    (tmp_path / "t.txt").write_bytes(b"\x80" * 25)  # No UTF-8: no characters either.
    assert [len(text) for _, text in source.documents("train")] == [7, 7, 7, 4]


@pytest.mark.parametrize("document", ["line", "blank_line"])
def test_gigantic_lines_and_blocks_are_several_documents(
    tmp_path, monkeypatch, document
):
    monkeypatch.setattr(sources, "DOCUMENT_BYTES", 10)
    (tmp_path / "t.txt").write_text("short\n\n" + "ä" * 12 + "\r\n\n\nlast")
    source = TextFiles(str(tmp_path / "t.txt"), document, validation_fraction=0.0)
    parts = texts(source, "train")
    assert parts == ["short", "ääää", "ääää", "ääää", "last"]


def test_documents_are_lines_or_paragraphs(book):
    lines = TextFiles(book, document="line", validation_fraction=0.0)
    assert texts(lines, "train") == ["one", "two", "three", "four", "five"]
    paragraphs = TextFiles(book, document="blank_line", validation_fraction=0.0)
    assert texts(paragraphs, "train") == ["one\ntwo", "three", "four\nfive\n"]


@pytest.mark.parametrize("document", ["line", "blank_line"])
def test_splits_share_no_document_and_lose_none(book, document):
    whole = TextFiles(book, document=document, validation_fraction=0.0)
    for fraction in (0.1, 0.3, 0.5, 0.9):
        source = TextFiles(
            book, document=document, validation_fraction=fraction, split="tail"
        )
        parts = texts(source, "train") + texts(source, "validation")
        assert parts == texts(whole, "train")


def test_the_tail_of_many_files_is_validation(tmp_path):
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_text(name * 10)
    source = TextFiles(str(tmp_path / "*.txt"), validation_fraction=0.3, split="tail")
    assert texts(source, "train") == ["a" * 10, "b" * 10, "c" * 10, "d" * 5]
    assert texts(source, "validation") == ["d" * 5, "e" * 10]
    assert source.size("train") == 35


def test_separate_validation_files(tmp_path, book):
    (tmp_path / "v.text").write_text("held out")
    source = TextFiles(book, validation_files=str(tmp_path / "v.text"))
    assert texts(source, "validation") == ["held out"]
    assert len(texts(source, "train")[0]) == 29


def test_fingerprints_follow_contents_and_not_places(tmp_path):
    prints = []
    for folder, text in [("a", "same"), ("b", "same"), ("c", "other")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.txt").write_text(text * 100)
        source = TextFiles(str(tmp_path / folder / "t.txt"))
        prints.append([source.fingerprint(split) for split in source.splits])
    assert prints[0] == prints[1]
    assert prints[0][0] != prints[2][0]
    assert prints[0][0] != prints[0][1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextFiles("x", document="lines"), "Did you mean 'line'"),
        (lambda: TextFiles("x", validation_fraction=1.5), "validation_fraction"),
        (
            lambda: TextFiles("x", validation_files="y", validation_fraction=0.1),
            "both bound",
        ),
        (lambda: list(TextFiles("/no/such").documents("train")), "matches no file"),
        (lambda: TextFiles("/no/such").fingerprint("test"), "no split 'test'"),
        (lambda: Tfds("imdb_reviews"), "dataset\\[/config\\]:version"),
        (
            lambda: Tfds("a/b:1.0.0", data_dir="/no").fingerprint("train"),
            "not prepared",
        ),
    ],
)
def test_mistakes_name_the_binding(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_stdlib_holds_out_whole_packages():
    source = PythonStdlib()
    splits = {
        split: [name for name, _ in source.documents(split)] for split in source.splits
    }
    tops = {
        split: {name.split("/")[0].removesuffix(".py") for name in names}
        for split, names in splits.items()
    }
    assert not tops["train"] & tops["validation"]
    assert len(splits["train"]) > 300
    share = source.size("validation") / (
        source.size("train") + source.size("validation")
    )
    assert 0.04 < share <= 0.05
    everything = splits["train"] + splits["validation"]
    assert not any(
        "/test" in name or name.startswith("encodings") for name in everything
    )
    assert "json/decoder.py" in everything
    assert set(tops["train"] | tops["validation"]) <= set(_stdlib_packages())


def test_stdlib_is_the_same_twice():
    assert PythonStdlib().fingerprint("train") == PythonStdlib().fingerprint("train")
    once, again = (list(PythonStdlib().documents("validation")) for _ in range(2))
    assert once == again
