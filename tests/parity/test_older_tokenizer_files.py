"""Vocabularies without a tokenizer.json: options, specials, what is refused."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("tokenizers")

import sentencepiece as spm
import small_tokenizers as small

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import load_tokenizer
from fmjax.errors import UserError


def configured(folder, tokenizer_class: str | None, **fields) -> HuggingFaceTokenizer:
    """Of a folder, after its tokenizer_config.json is written."""
    if tokenizer_class is not None:
        fields["tokenizer_class"] = tokenizer_class
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return HuggingFaceTokenizer.from_folder(folder)


def own_ids(folder, name: str, text: str, **changes) -> list[int]:
    """What SentencePiece itself makes of a text."""
    processor = spm.SentencePieceProcessor(str(folder / name))
    processor.override_normalizer_spec(**changes)
    return processor.encode(text)


@pytest.mark.parametrize(
    ("make", "name", "tokenizer_class"),
    [
        (small.t5, "spiece.model", "T5Tokenizer"),
        (small.llama, "tokenizer.model", "LlamaTokenizer"),
        (small.gemma, "tokenizer.model", "GemmaTokenizer"),
        (small.deberta, "spm.model", "DebertaV2Tokenizer"),
    ],
)
def test_sentencepiece_models_cut_as_sentencepiece_does(
    make, name, tokenizer_class, tmp_path
):
    tokenizer = configured(make(tmp_path), tokenizer_class)
    for text in small.TEXTS:
        assert tokenizer.encode(text) == own_ids(tmp_path, name, text), text


def test_xlm_roberta_moves_ids_by_one(tmp_path):
    tokenizer = configured(small.xlm_roberta(tmp_path), "XLMRobertaTokenizer")
    for text in small.TEXTS:
        # Fairseq has <s>, <pad>, </s> and <unk> in front; SentencePiece's 0 is <unk>.
        own = own_ids(tmp_path, "sentencepiece.bpe.model", text)
        assert tokenizer.encode(text) == [i + 1 if i else 3 for i in own], text
    assert tokenizer.special_id("mask") == tokenizer.vocab_size - 1


def test_legacy_says_how_text_behind_a_special_begins(tmp_path):
    small.llama(tmp_path)
    name = "tokenizer.model"
    with_space = own_ids(tmp_path, name, "cat")
    without = own_ids(tmp_path, name, "cat", add_dummy_prefix=False)
    assert with_space != without
    for legacy, behind in ((True, with_space), (False, without), (None, without)):
        tokenizer = configured(tmp_path, "LlamaTokenizer", legacy=legacy)
        assert tokenizer.encode("cat") == with_space
        assert tokenizer.encode("cat</s>cat") == [*with_space, 2, *behind]
    tokenizer = configured(tmp_path, "LlamaTokenizer", add_prefix_space=False)
    assert tokenizer.encode("cat") == without
    assert tokenizer.decode(without) == "cat"
    # Where white space is stripped, a space behind a special still parts the words.
    small.t5(tmp_path / "t5")
    tokenizer = configured(tmp_path / "t5", "T5Tokenizer", legacy=False)
    the = own_ids(tmp_path / "t5", "spiece.model", "the")
    bare = own_ids(tmp_path / "t5", "spiece.model", "the", add_dummy_prefix=False)
    assert tokenizer.encode("the</s> the</s>the") == [*the, 1, *the, 1, *bare]


def test_sentinels_count_down_from_the_end(tmp_path):
    size = spm.SentencePieceProcessor(str(small.t5(tmp_path) / "spiece.model"))
    size = size.get_piece_size()
    tokenizer = configured(tmp_path, "T5Tokenizer")
    assert tokenizer.vocab_size == size + 100
    ids = tokenizer.encode("<extra_id_0><extra_id_1> <extra_id_99>")
    assert ids == [size + 99, size + 98, size]
    assert tokenizer.id_of("<extra_id_0>") == size + 99
    assert tokenizer.decode(ids) == ""
    assert configured(tmp_path, "T5Tokenizer", extra_ids=3).vocab_size == size + 3
    with pytest.raises(UserError, match="extra_ids = 'many'"):
        configured(tmp_path, "T5Tokenizer", extra_ids="many")


def test_added_tokens_are_found_before_the_vocabulary(tmp_path):
    small.byte_level(tmp_path, ("<|endoftext|>",))
    size = len(json.loads((tmp_path / "vocab.json").read_text()))
    (tmp_path / "added_tokens.json").write_text(
        json.dumps({"<|user|>": size, "quack": size + 1})
    )
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": "<|user|>", "eos_token": {"content": "<|endoftext|>"}})
    )
    tokenizer = configured(tmp_path, "GPT2Tokenizer")
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert tokenizer.encode("a<|user|>bquack") == [*a, size, *b, size + 1]
    assert tokenizer.pad_id == tokenizer.special_id("pad") == size
    assert tokenizer.decode([*a, size, size + 1]) == "aquack"
    assert tokenizer.token_bytes()[[size, size + 1]].tolist() == [0, 5]
    assert tokenizer.id_of("<|user|>") == size
    assert tokenizer.id_of("quack") is None
    # Two files that disagree are not chosen between.
    added = {"0": {"content": "<|user|>", "special": True}}
    with pytest.raises(UserError, match=r"'<.user.>' has the id 420 in the added"):
        configured(tmp_path, "GPT2Tokenizer", added_tokens_decoder=added)


def test_specials_are_known_by_name_and_by_class(tmp_path):
    small.wordpiece(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "electra"}))
    tokenizer = HuggingFaceTokenizer.from_folder(tmp_path)
    names = ("pad", "unk", "cls", "sep", "mask")
    assert [tokenizer.special_id(name) for name in names] == [0, 1, 2, 3, 4]
    assert tokenizer.special_id("bos") is None
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 3, 0)
    assert tokenizer.wrap([7], [8, 9]) == ([2, 7, 3, 8, 9, 3], [0, 0, 0, 1, 1, 1])
    with pytest.raises(UserError, match=r"'msk'; expected one of .*'mask'"):
        tokenizer.special_id("msk")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": None}))
    assert HuggingFaceTokenizer.from_folder(tmp_path).special_id("mask") is None


def test_bytes_of_wordpiece_count_the_space_before_a_word(tmp_path):
    tokenizer = configured(small.wordpiece(tmp_path), "BertTokenizer")
    sizes = tokenizer.token_bytes()
    text = "the quick brown fox über 敏 捷"
    ids = tokenizer.encode(text)
    assert 1 not in ids
    written = tokenizer.decode(ids)
    assert sizes[ids].sum() == len(written.encode()) + 1
    assert not sizes[:5].any()


def test_words_of_clip_end_with_a_space(tmp_path):
    tokenizer = configured(small.clip(tmp_path), "CLIPTokenizer")
    sizes = tokenizer.token_bytes()
    ids = tokenizer.encode("The  quick Über-fox, 42")
    written = tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id])
    assert written == "the quick über - fox , 4 2"
    assert sizes[ids].sum() == len(written.encode()) + 1
    assert tokenizer.wrap(ids)[0] == [tokenizer.bos_id, *ids, tokenizer.eos_id]


@pytest.mark.parametrize(
    ("make", "in_front"), [(small.llama, 1), (small.gemma, 0), (small.t5, 1)]
)
def test_bytes_of_pieces_add_up_to_the_texts(make, in_front, tmp_path):
    name = {small.llama: "Llama", small.gemma: "Gemma", small.t5: "T5"}[make]
    tokenizer = configured(make(tmp_path), f"{name}Tokenizer")
    sizes = tokenizer.token_bytes()
    for text in small.CORPUS[:5]:
        ids = tokenizer.encode(text)
        assert tokenizer.special_id("unk") not in ids
        assert sizes[ids].sum() == len(text.encode()) + in_front


@pytest.mark.parametrize(
    ("tokenizer_class", "fields", "message"),
    [
        ("BertJapaneseTokenizer", {}, "tokenizer_class = 'BertJapaneseTokenizer'"),
        ("BertTokenizr", {}, "'BertTokenizer'"),
        (None, {}, r"tokenizer_class = None \(config.json: model_type = None\)"),
        ("BertTokenizer", {"do_basic_tokenize": False}, "do_basic_tokenize = False"),
        ("BertTokenizer", {"never_split": ["a"]}, "never_split"),
        ("BertTokenizer", {"do_lower_case": "no"}, "do_lower_case = 'no'"),
        ("BertTokenizer", {"split_special_tokens": True}, "split_special_tokens"),
        ("GPT2Tokenizer", {}, r"merges\.txt is missing; found only"),
        ("T5Tokenizer", {}, r"spiece\.model or .* is missing; found only"),
        ("MarianTokenizer", {}, r"source\.spm is missing"),
        ("BertTokenizer", {"added_tokens_decoder": {"a": 1}}, "added_tokens_decoder"),
        ("BertTokenizer", {"mask_token": 7}, "7 is not a token"),
    ],
)
def test_what_is_not_supported_is_named(tokenizer_class, fields, message, tmp_path):
    small.wordpiece(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        configured(tmp_path, tokenizer_class, **fields)
    assert str(tmp_path) in str(raised.value)


def test_damaged_and_unread_vocabularies_are_named(tmp_path):
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(UserError, match=r"tekken\.json"):
        HuggingFaceTokenizer.from_folder(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"spiece\.model is not a SentencePiece"):
        configured(tmp_path, "T5Tokenizer")
    with pytest.raises(UserError, match=r"spiece\.model is not a SentencePiece"):
        configured(tmp_path, "PegasusTokenizer")
    with pytest.raises(UserError, match="sp_model_kwargs"):
        configured(tmp_path, "T5Tokenizer", sp_model_kwargs={"enable_sampling": True})
    (tmp_path / "vocab.json").write_text("[1]")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(UserError, match=r"vocab\.json: expected an object"):
        configured(tmp_path, "GPT2Tokenizer")
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    with pytest.raises(UserError, match=r"merges\.txt does not fit vocab\.json"):
        configured(tmp_path, "GPT2Tokenizer")


@pytest.mark.parametrize(
    ("make", "tokenizer_class", "fields", "message"),
    [
        (small.llama, "AlbertTokenizer", {}, r"tokenizer\.model: .*model_type = 2"),
        (small.albert, "PegasusTokenizer", {"offset": 1}, "offset = 1"),
        (small.xlm_roberta, "MBartTokenizer", {"src_lang": "de"}, "'de'.*de_DE"),
        (small.m2m_100, "M2M100Tokenizer", {"src_lang": "xx"}, "'__xx__' is none"),
        (
            small.m2m_100,
            "M2M100Tokenizer",
            {"language_codes": "all"},
            "'all'; expected one of m2m100, wmt21",
        ),
    ],
)
def test_languages_and_pieces_that_do_not_fit_are_named(
    make, tokenizer_class, fields, message, tmp_path
):
    with pytest.raises(UserError, match=message):
        configured(make(tmp_path), tokenizer_class, **fields)


def test_a_saved_tokenizer_chooses_no_paths(tmp_path):
    tokenizer = configured(small.wordpiece(tmp_path / "hf"), "BertTokenizer")
    tokenizer.save(tmp_path / "run")
    file = tmp_path / "run/hugging_face.json"
    fields = json.loads(file.read_text())
    fields["files"]["../evil.txt"] = ["text", "evil"]
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"'\.\./evil\.txt' is not one of"):
        load_tokenizer(tmp_path / "run")


def test_loading_needs_neither_tensorflow_nor_transformers(tmp_path):
    configured(small.marian(tmp_path / "hf"), "MarianTokenizer").save(tmp_path / "run")
    program = """
import sys
for name in ("tensorflow", "tensorflow_text", "seqio", "transformers", "torch"):
    sys.modules[name] = None
from fmjax.data.tokenizers.tokenizers import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
print(tokenizer.decode(tokenizer.encode("the cat")))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "the cat\n"
