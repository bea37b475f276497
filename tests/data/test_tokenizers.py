import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmjax.data.seqio_import import import_seqio
from fmjax.data.sources.stdlib import PythonStdlib
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import (
    DESCRIPTOR,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    from_seqio,
    load_tokenizer,
    start_id,
)
from fmjax.data.tokenizers.vocabularies import (
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
    characters = CharacterTokenizer("".join(sorted(set(text))), ends=True)
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
    with pytest.raises(UserError, match="'é' is not one of the 65"):
        tokenizer.encode("é")


@pytest.mark.parametrize(
    "make",
    [
        lambda trained: trained,
        lambda trained: CharacterTokenizer("\nabcß", ends=True),
        lambda trained: CharacterTokenizer("ab"),
        lambda trained: ByteTokenizer(),
        lambda trained: CharacterTokenizer("ab", names=("[MASK]", "<extra_id_0>")),
        lambda trained: ByteTokenizer(("[MASK]", "<extra_id_0>")),
    ],
)
def test_saved_tokenizers_come_back(trained, tmp_path, make):
    tokenizer = make(trained)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.digest == tokenizer.digest
    assert loaded.encode("ab\nab".replace("\n", "")) == tokenizer.encode("abab")
    np.testing.assert_array_equal(loaded.token_bytes(), tokenizer.token_bytes())
    assert loaded.id_of("[MASK]") == tokenizer.id_of("[MASK]")
    assert not (tmp_path / "tokenizer.json").exists()  # Hugging Face's name.


def test_damaged_tokenizers_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(tmp_path)
    trained.save(tmp_path)
    file = tmp_path / SentencePieceTokenizer.file_name
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"sentencepiece\.model"):
        load_tokenizer(tmp_path)
    fields = json.loads((tmp_path / DESCRIPTOR).read_text())
    changes = [{"kind": "pickle"}, {"kind": []}, {"format": 99}, {"digest": "0"}]
    for change in changes:
        (tmp_path / DESCRIPTOR).write_text(json.dumps(fields | change))
        with pytest.raises(UserError):
            load_tokenizer(tmp_path)
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / DESCRIPTOR).write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            load_tokenizer(tmp_path)


WORDS = {"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n"}
BERT = {"tokenizer_class": "BertTokenizer"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "a"}
WORD_LEVEL = {"type": "WordLevel", "vocab": {"a": 2**32 - 1}, "unk_token": "a"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab.json": "{", "merges.txt": ""}, r"vocab\.json is not JSON"),
        ({"vocab.json": "[" * 10**5, "merges.txt": ""}, r"vocab\.json is not JSON"),
        ({"vocab.json": '{"a": -1}', "merges.txt": ""}, "'a' has the id -1"),
        ({"vocab.json": '{"a": 1e13}', "merges.txt": ""}, "has the id 1"),
        ({"vocab.json": '{"a": 10000000000}', "merges.txt": ""}, "from 0 to 16777215"),
        (WORDS | {"added_tokens.json": '{"x": "q"}'}, r"added_tokens\.json: 'x' has"),
        (
            WORDS | {"added_tokens.json": "[1]"},
            "expected an object that maps tokens to ids",
        ),
        (WORDS | {"config.json": "[" * 10**5}, r"config\.json is not JSON"),
        (
            WORDS | {"config.json": '{"model_type": []}'},
            "do not define a valid tokenizer",
        ),
        (
            WORDS | {"special_tokens_map.json": '{"extra_special_tokens": 5}'},
            "extra_special_tokens = 5; expected a list of tokens",
        ),
        (
            WORDS | {"special_tokens_map.json": '{"bos_token": "\\ud800"}'},
            "do not define a valid tokenizer",
        ),
        ({"tokenizer.json": "[" * 10**5}, r"tokenizer\.json is not valid"),
        (
            {"tokenizer.json": json.dumps({"version": "1.0", "model": WORD_LEVEL})},
            "ids from 4294967295 to 4294967295; expected ids from 0 to 16777215",
        ),
    ],
)
def test_hugging_faces_files_that_are_none_are_refused(tmp_path, files, message):
    told = GPT2 if "vocab.json" in files else BERT
    told = {} if "config.json" in files else told
    for name, content in {"tokenizer_config.json": json.dumps(told), **files}.items():
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        HuggingFaceTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"files": []}, {"files": {"vocab.txt": 5}}, {"side": []}, {"model": [1]}],
)
def test_a_saved_tokenizers_own_file_is_checked(tmp_path, change):
    files = WORDS | {"tokenizer_config.json": json.dumps(BERT).encode()}
    HuggingFaceTokenizer(files).save(tmp_path)
    file = tmp_path / HuggingFaceTokenizer.file_name
    fields = json.loads(file.read_text())
    load_tokenizer(tmp_path)
    for content in (json.dumps(fields | change), "[" * 100_000, "[]"):
        file.write_text(content)
        with pytest.raises(UserError, match=r"hugging_face\.json cannot be read"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("normalization", "decoded"),
    [
        ("identity", "Ⅳ DEF\tＦoo\n"),
        ("nfkc", "IV DEF\tFoo\n"),
        ("nmt_nfkc_cf", "iv def foo "),
    ],
)
def test_sentencepiece_normalizes_text_as_told(root, normalization, decoded):
    vocabulary = SentencePiece(
        vocab_size=512, training_bytes=100_000, normalization=normalization,
        specials=("[MASK]",),
    )  # fmt: skip
    tokenizer = vocabulary.build(PythonStdlib(), root)
    assert tokenizer.decode(tokenizer.encode("Ⅳ DEF\tＦoo\n")) == decoded


def test_training_on_files_writes_a_model_for_sentencepiece_file(tmp_path, root):
    text = tmp_path / "t.txt"
    text.write_bytes(b"".join(t for _, t in PythonStdlib().documents("validation")))
    out = tmp_path / "models" / "m.model"
    trained = train_sentencepiece(str(text), 400, str(out), normalization="nfkc_cf")
    read = SentencePiece(file=str(out)).build(PythonStdlib(), root)
    assert read.digest == trained.digest
    assert read.vocab_size == 400
    assert read.decode(read.encode("Ab")) == "ab"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SentencePiece(model_type="bpee"), "Did you mean 'bpe'"),
        (lambda p: SentencePiece(normalization="nfk"), "Did you mean 'nfkc'"),
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


NAMES = ("[CLS]", "[MASK]")


@pytest.mark.parametrize(
    "vocabulary",
    [
        SentencePiece(
            vocab_size=512, training_bytes=200_000, specials=NAMES, sentinels=3
        ),
        Characters(ends=True, specials=NAMES, sentinels=3),
        Bytes(specials=NAMES, sentinels=3),
    ],
    ids=lambda vocabulary: type(vocabulary).__name__,
)
def test_special_tokens_have_the_highest_ids_and_sentinels_descend(root, vocabulary):
    tokenizer = vocabulary.build(PythonStdlib(), root)
    # T5's convention: <extra_id_0> is the last id, <extra_id_1> the one before it.
    names = ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>", "[MASK]", "[CLS]"]
    last = tokenizer.vocab_size - 1
    assert [tokenizer.id_of(name) for name in names] == [last - i for i in range(5)]
    assert tokenizer.id_of("<extra_id_3>") is tokenizer.id_of("a") is None
    assert not tokenizer.token_bytes()[-5:].any()
    assert tokenizer.token_bytes()[-6] > 0
    # A text that spells one is text: nobody can smuggle a special token in.
    assert max(tokenizer.encode("[MASK]<extra_id_0>")) < last - 4
    ids = [*tokenizer.encode("ab"), last, last - 3]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.seqio_vocabulary().vocab_size == tokenizer.vocab_size


def test_a_given_model_gets_the_special_tokens_that_it_lacks(trained, root, tmp_path):
    trained.save(tmp_path)
    file = str(tmp_path / SentencePieceTokenizer.file_name)
    more = SentencePiece(file=file, specials=NAMES, sentinels=2)
    tokenizer = more.build(PythonStdlib(), root)
    assert tokenizer.vocab_size == trained.vocab_size + 4
    assert tokenizer.encode("def f(x):") == trained.encode("def f(x):")
    tokenizer.save(tmp_path / "more")
    file = str(tmp_path / "more" / SentencePieceTokenizer.file_name)
    again = SentencePiece(file=file, specials=NAMES, sentinels=2)
    assert again.build(PythonStdlib(), root).digest == tokenizer.digest
    with pytest.raises(UserError, match="'self' is an ordinary piece of this model"):
        SentencePiece(file=file, specials=("self",)).build(PythonStdlib(), root)


def test_seqios_own_sentinels_are_special(trained, tmp_path):
    seqio = import_seqio()
    trained.save(tmp_path)
    file = str(tmp_path / SentencePieceTokenizer.file_name)
    vocabulary = seqio.SentencePieceVocabulary(file, extra_ids=4)
    tokenizer = from_seqio(vocabulary)
    assert tokenizer.vocab_size == vocabulary.vocab_size == trained.vocab_size + 4
    for i in range(4):
        (found,) = vocabulary.encode(f" <extra_id_{i}>")
        assert tokenizer.id_of(f"<extra_id_{i}>") == found == 515 - i
    assert tokenizer.token_bytes().tolist() == [*trained.token_bytes(), 0, 0, 0, 0]
    assert tokenizer.decode([515, *trained.encode("ab"), 512]) == "ab"
    in_bytes = from_seqio(seqio.ByteVocabulary(2))
    assert [in_bytes.id_of(f"<extra_id_{i}>") for i in (0, 1)] == [260, 259]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bytes(sentinels=-1), "bytes.sentinels = -1"),
        (lambda: Characters(specials=("[A]", "[A]")), "characters.specials = "),
        (lambda: SentencePiece(specials=("",)), "sentencepiece.specials = "),
        (lambda: SentencePiece(vocab_size=399, sentinels=100), "at least 400"),
    ],
)
def test_names_that_cannot_be_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
