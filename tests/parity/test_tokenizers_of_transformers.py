"""Tokenizers that transformers saved against transformers, class by class."""

import json

import pytest

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

import small_tokenizers as small  # noqa: E402

from fmjax.data.tokenizers.huggingface.families import NAMES  # noqa: E402
from fmjax.data.tokenizers.huggingface.languages import M2M_100  # noqa: E402
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer  # noqa: E402
from fmjax.data.tokenizers.tokenizers import from_seqio, load_tokenizer  # noqa: E402

ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
GPT2 = ("<|endoftext|>",)
# It swallows the space before it; version 4 says so in every folder, 5 by no default.
MASK = {"content": "<mask>", "lstrip": True, "special": True, "__type": "AddedToken"}
# A class, the files it begins with, and options.
CASES = {
    "bert": ("BertTokenizer", small.wordpiece, {}),
    "bert_cased": (
        "BertTokenizer",
        lambda folder: small.wordpiece(folder, lowercase=False),
        {"do_lower_case": False},
    ),
    "bert_odd": (
        "BertTokenizer",
        small.wordpiece,
        {"strip_accents": False, "tokenize_chinese_chars": False},
    ),
    "electra": ("ElectraTokenizer", small.wordpiece, {}),
    "gpt2": ("GPT2Tokenizer", lambda folder: small.byte_level(folder, GPT2), {}),
    "gpt2_spaced": (
        "GPT2Tokenizer",
        lambda folder: small.byte_level(folder, GPT2),
        {"add_prefix_space": True, "pad_token": "<pad>"},
    ),
    "opt": (
        "GPT2Tokenizer",
        lambda folder: small.byte_level(folder, ROBERTA),
        {
            **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>"),
            "pad_token": "<pad>",
            "add_bos_token": True,
        },
    ),
    "qwen2": ("Qwen2Tokenizer", lambda folder: small.byte_level(folder, GPT2), {}),
    "roberta": (
        "RobertaTokenizer",
        lambda folder: small.byte_level(folder, ROBERTA),
        {"mask_token": MASK},
    ),
    "bart": (
        "BartTokenizer",
        lambda folder: small.byte_level(folder, ROBERTA),
        {"mask_token": MASK},
    ),
    "t5": ("T5Tokenizer", small.t5, {}),
    "llama": ("LlamaTokenizer", small.llama, {}),
    "llama_eos": (
        "LlamaTokenizer",
        small.llama,
        {"add_bos_token": False, "add_eos_token": True},
    ),
    "gemma": ("GemmaTokenizer", small.gemma, {}),
    "deberta": ("DebertaV2Tokenizer", small.deberta, {}),
    "xlm_roberta": ("XLMRobertaTokenizer", small.xlm_roberta, {}),
    "marian": ("MarianTokenizer", small.marian, {}),
    "distilbert": ("DistilBertTokenizer", small.wordpiece, {}),
    "mpnet": ("MPNetTokenizer", small.mpnet, {}),
    "albert": ("AlbertTokenizer", small.albert, {}),
    "camembert": ("CamembertTokenizer", small.xlm_roberta, {}),
    "albert_cased": (
        "AlbertTokenizer",
        small.albert,
        {"do_lower_case": False, "keep_accents": True},
    ),
    "mbart": ("MBartTokenizer", small.xlm_roberta, {"src_lang": "de_DE"}),
    "mbart50": ("MBart50Tokenizer", small.xlm_roberta, {"src_lang": "ru_RU"}),
    "m2m_100": ("M2M100Tokenizer", small.m2m_100, {"src_lang": "de"}),
    "m2m_100_listed": (
        "M2M100Tokenizer",
        small.m2m_100,
        # As published folders have them.
        {"additional_special_tokens": [f"__{code}__" for code in M2M_100["m2m100"]]},
    ),
    "wmt21": ("M2M100Tokenizer", small.m2m_100, {"language_codes": "wmt21"}),
    "nllb": ("NllbTokenizer", small.xlm_roberta, {"src_lang": "deu_Latn"}),
    "pegasus": ("PegasusTokenizer", small.t5, {}),
    "clip": ("CLIPTokenizer", small.clip, {}),
    "siglip": ("SiglipTokenizer", small.siglip, {}),
}
# Where transformers 5 does not read a SentencePiece model as SentencePiece does.
ONLY_NEW_FILES = ("nllb",)
OWN_READING = ("llama", "llama_eos", "gemma", "deberta")


def older_files(case: str, folder):
    """A folder with a vocabulary and tokenizer_config.json, but no tokenizer.json."""
    name, make, options = CASES[case]
    make(folder)
    fields = {"tokenizer_class": name} | options
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def read_by_transformers(case: str, folder):
    # Version 5 has these two under the names of those they are equal to.
    renamed = {"ElectraTokenizer": "BertTokenizer", "BartTokenizer": "RobertaTokenizer"}
    name = renamed.get(CASES[case][0], CASES[case][0])
    return getattr(transformers, name).from_pretrained(folder)


def assert_same(ours, theirs, texts) -> None:
    # M2M-100's class does not count its languages.
    languages = getattr(theirs, "lang_token_to_id", {})
    last = max(languages.values(), default=-1)
    assert ours.vocab_size == max(len(theirs), last + 1)
    for language, i in languages.items():
        assert ours.id_of(language) == i
    for name in NAMES:
        if (expected := getattr(theirs, f"{name}_token_id")) is not None:
            assert ours.special_id(name) == expected, name
    second = ours.encode("the cat")
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.wrap(ids)[0] == theirs(text)["input_ids"], text
        pair = theirs(text, "the cat")
        found, types = ours.wrap(ids, second)
        assert found == pair["input_ids"], text
        assert types == pair.get("token_type_ids", types), text


@pytest.mark.parametrize("case", CASES)
def test_saved_tokenizers_give_the_same_ids(case, tmp_path):
    theirs = read_by_transformers(case, older_files(case, tmp_path / "older"))
    theirs.save_pretrained(tmp_path / "hf")
    HuggingFaceTokenizer.from_folder(tmp_path / "hf").save(tmp_path / "run")
    ours = load_tokenizer(tmp_path / "run")
    assert_same(ours, theirs, small.TEXTS + small.MARKED)
    # What is exported is what came in, and transformers reads it as before.
    ours.save_original(tmp_path / "exported")
    for file in (tmp_path / "exported").iterdir():
        assert file.read_bytes() == (tmp_path / "hf" / file.name).read_bytes()
    again = read_by_transformers(case, tmp_path / "exported")
    for text in small.TEXTS:
        assert again(text)["input_ids"] == theirs(text)["input_ids"]


@pytest.mark.parametrize(
    "case", [c for c in CASES if c not in (*OWN_READING, *ONLY_NEW_FILES)]
)
def test_older_files_give_the_same_ids(case, tmp_path):
    folder = older_files(case, tmp_path / "older")
    theirs = read_by_transformers(case, folder)
    HuggingFaceTokenizer.from_folder(folder).save(tmp_path / "run")
    ours = load_tokenizer(tmp_path / "run")
    assert_same(ours, theirs, small.TEXTS + small.MARKED)
    ours.save_original(tmp_path / "exported")
    for file in (tmp_path / "exported").iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes()


def test_siglip_2_reads_gemmas_file_in_lower_case(tmp_path):
    theirs = read_by_transformers("gemma", older_files("gemma", tmp_path / "older"))
    theirs.save_pretrained(tmp_path / "hf")
    transformers.Siglip2Config().save_pretrained(tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = HuggingFaceTokenizer.from_folder(tmp_path / "hf")
    text = "Hello WORLD, the Cat"
    assert ours.encode(text) == ours.encode(text.lower())
    assert_same(ours, theirs, [text, *small.TEXTS])
    # What transformers writes of it is not lowered twice, and the same.
    theirs.save_pretrained(tmp_path / "hf")
    again = HuggingFaceTokenizer.from_folder(tmp_path / "hf")
    assert_same(again, theirs, [text, *small.TEXTS])


def test_bloom_is_read_from_its_one_file(tmp_path):
    small.byte_level(tmp_path / "older", ("<unk>", "<s>", "</s>", "<pad>"))
    model = tokenizers.models.BPE.from_file(
        str(tmp_path / "older/vocab.json"), str(tmp_path / "older/merges.txt")
    )
    tokenizer = tokenizers.Tokenizer(model)
    words = tokenizers.Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(words, "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        pad_token="<pad>",
    )
    theirs.save_pretrained(tmp_path / "hf")
    ours = HuggingFaceTokenizer.from_folder(tmp_path / "hf")
    assert_same(ours, theirs, small.TEXTS + small.MARKED)
    assert ours.bos_id is None
    assert (ours.eos_id, ours.pad_id) == (2, 3)


def test_the_second_language_of_a_pair_has_pieces_of_its_own(tmp_path):
    theirs = read_by_transformers("marian", older_files("marian", tmp_path / "hf"))
    HuggingFaceTokenizer.from_folder(tmp_path / "hf").target.save(tmp_path / "run")
    target = load_tokenizer(tmp_path / "run")
    source = HuggingFaceTokenizer.from_folder(tmp_path / "hf")
    different = 0
    for text in small.TEXTS + small.MARKED:
        expected = theirs(text_target=text)["input_ids"]
        assert target.wrap(target.encode(text))[0] == expected, text
        different += source.encode(text) != target.encode(text)
    assert different
    assert target.digest != source.digest
    assert target.target is target


def test_every_language_comes_back_as_transformers_writes_it(tmp_path):
    for case in (
        *("gpt2", "roberta", "qwen2", "llama", "gemma", "t5", "clip"),
        *("albert", "camembert", "mbart", "pegasus"),
    ):
        folder = older_files(case, tmp_path / case)
        theirs, ours = (
            read_by_transformers(case, folder),
            HuggingFaceTokenizer.from_folder(folder),
        )
        for text in small.CORPUS:
            ids = ours.encode(text)
            expected = theirs.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            assert ours.decode([*ids, ours.eos_id, 10_000]) == expected, (case, text)


@pytest.mark.parametrize("case", ["bert", "gpt2", "t5", "llama", "marian"])
def test_seqio_has_the_same_ids_in_python_and_tensorflow(case, tmp_path):
    tf = pytest.importorskip("tensorflow")
    tokenizer = HuggingFaceTokenizer.from_folder(older_files(case, tmp_path))
    vocabulary = tokenizer.seqio_vocabulary()
    assert vocabulary.vocab_size == tokenizer.vocab_size
    assert vocabulary.eos_id == tokenizer.eos_id
    assert vocabulary.unk_id == tokenizer.special_id("unk")
    for text in small.CORPUS:
        ids = tokenizer.encode(text)
        assert vocabulary.encode(text) == ids
        assert vocabulary.encode_tf(text).numpy().tolist() == ids
        # Up through the end, as seqio has it.
        ended = [*ids, tokenizer.eos_id, *ids]
        assert vocabulary.decode(ended) == tokenizer.decode(ids)
        rows = vocabulary.decode_tf(tf.constant([ids, ids])).numpy()
        assert [row.decode() for row in rows] == [tokenizer.decode(ids)] * 2
    in_graph = tf.data.Dataset.from_tensor_slices(small.TEXTS).map(vocabulary.encode_tf)
    found = [ids.tolist() for ids in in_graph.as_numpy_iterator()]
    assert found == [tokenizer.encode(text) for text in small.TEXTS]
    assert from_seqio(vocabulary) is tokenizer
    again = HuggingFaceTokenizer.from_folder(tmp_path).seqio_vocabulary()
    assert vocabulary == again
