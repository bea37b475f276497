import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.data.sources import TextFiles
from fmjax.data.stdlib import PythonStdlib
from fmjax.data.tokenizers import (
    DESCRIPTOR,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
    start_id,
)
from fmjax.data.vocabularies import (
    Bytes,
    Characters,
    SentencePiece,
    train_sentencepiece,
)
from fmjax.errors import UserError

# U+2581 is SentencePiece's own mark for a space; surrogates are no text.
text_of = st.text(
    st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]), max_size=80
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def trained(root):
    settings_ = SentencePiece(vocab_size=512, training_bytes=200_000)
    return settings_.build(PythonStdlib(), root)


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn  x   # two\r\n\n\n        deep",
        " leading and trailing  ",
        "<s></s><pad><unk><0x0A> 字 😀 e\u0301 \x00 \x7f",
        "",
        "\n",
    ],
)
def test_sentencepiece_gives_text_back(trained, text):
    assert trained.decode(trained.encode(text)) == text


@settings(deadline=None, max_examples=150)
@given(text=text_of)
def test_every_tokenizer_gives_any_text_back(trained, text):
    characters = CharacterTokenizer("".join(sorted(set(text))), specials=True)
    for tokenizer in (trained, ByteTokenizer(), characters):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_specials_follow_seqios_convention_and_mean_no_bytes(trained):
    assert (trained.pad_id, trained.eos_id, trained.bos_id) == (0, 1, None)
    assert start_id(trained) == 1
    assert trained.token_bytes()[:3].tolist() == [0, 0, 0]
    assert trained.vocab_size == 512 == len(trained.token_bytes())
    assert trained.decode([0, *trained.encode("ab"), 1, 600, -1]) == "ab"


def test_training_is_deterministic_and_done_once(trained, root, tmp_path):
    settings_ = SentencePiece(vocab_size=512, training_bytes=200_000)
    assert settings_.build(PythonStdlib(), tmp_path).digest == trained.digest
    (folder,) = (root / "tokenizers").iterdir()
    written = (folder / DESCRIPTOR).stat().st_mtime_ns
    settings_.build(PythonStdlib(), root)
    assert (folder / DESCRIPTOR).stat().st_mtime_ns == written


def test_characters_are_those_of_nanogpt(shared_data, root):
    source = TextFiles(str(shared_data / "text" / "tinyshakespeare.txt"))
    tokenizer = Characters().build(source, root)
    # nanoGPT's data/shakespeare_char/readme.md lists them.
    expected = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert tokenizer.characters == expected
    assert tokenizer.vocab_size == 65
    assert tokenizer.eos_id is tokenizer.bos_id is tokenizer.pad_id is None
    assert tokenizer.encode("hii there") == [46, 47, 47, 1, 58, 46, 43, 56, 43]
    with pytest.raises(UserError, match="'é' is not among the 65"):
        tokenizer.encode("é")


@pytest.mark.parametrize(
    "make",
    [
        lambda trained: trained,
        lambda trained: CharacterTokenizer("\nabcß", specials=True),
        lambda trained: CharacterTokenizer("ab"),
        lambda trained: ByteTokenizer(),
    ],
)
def test_saved_tokenizers_come_back(trained, tmp_path, make):
    tokenizer = make(trained)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.digest == tokenizer.digest
    assert loaded.encode("ab\nab".replace("\n", "")) == tokenizer.encode("abab")
    np.testing.assert_array_equal(loaded.token_bytes(), tokenizer.token_bytes())
    assert not (tmp_path / "tokenizer.json").exists()  # Hugging Face's name.


def test_damaged_tokenizers_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match="No tokenizer in"):
        load_tokenizer(tmp_path)
    trained.save(tmp_path)
    file = tmp_path / SentencePieceTokenizer.file_name
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"sentencepiece\.model"):
        load_tokenizer(tmp_path)
    fields = json.loads((tmp_path / DESCRIPTOR).read_text())
    for change in ({"kind": "pickle"}, {"format": 99}, {"digest": "0"}):
        (tmp_path / DESCRIPTOR).write_text(json.dumps(fields | change))
        with pytest.raises(UserError):
            load_tokenizer(tmp_path)
    (tmp_path / DESCRIPTOR).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load_tokenizer(tmp_path)


def test_training_on_files_writes_a_model_for_sentencepiece_file(tmp_path, root):
    text = tmp_path / "t.txt"
    text.write_bytes(b"".join(t for _, t in PythonStdlib().documents("validation")))
    out = tmp_path / "models" / "m.model"
    trained = train_sentencepiece(str(text), 400, str(out))
    read = SentencePiece(file=str(out)).build(PythonStdlib(), root)
    assert read.digest == trained.digest
    assert read.vocab_size == 400


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SentencePiece(model_type="bpee"), "Did you mean 'bpe'"),
        (lambda p: SentencePiece(vocab_size=100), "at least"),
        (
            lambda p: SentencePiece(file=str(p / "no")).build(PythonStdlib(), p),
            r"sentencepiece\.file",
        ),
        (lambda p: train_sentencepiece(str(p / "t"), 8192, str(p / "m")), "vocab_size"),
    ],
)
def test_mistakes_name_the_binding(tmp_path, make, message):
    (tmp_path / "t").write_text("too little text\n" * 3)
    with pytest.raises(UserError, match=message):
        make(tmp_path)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "m.model").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"m\.model"):
        SentencePiece(file=str(tmp_path / "m.model")).build(PythonStdlib(), tmp_path)


def test_bytes_are_byt5s():
    tokenizer = Bytes().build(None, None)
    assert tokenizer.encode("aß") == [100, 198, 162]
    assert tokenizer.vocab_size == 259
