"""Where words begin, by trained vocabularies of every kind, against white space."""

import json
from string import ascii_letters

import numpy as np
import pytest
import small_tokenizers as small

from fmjax.data.sources.stdlib import PythonStdlib
from fmjax.data.text.masking import Masking
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import ByteTokenizer, CharacterTokenizer
from fmjax.data.tokenizers.vocabularies import SentencePiece
from fmjax.errors import UserError

TEXT = "the cat sat on the mat\nand the dog sat\n\nan\tidea or  a lot of ideas"

# WordPiece's mark for what is inside a word, as text.
MARKDOWN = [*small.CORPUS, *(f"{a}##{b}" for a in ascii_letters for b in "aeiou")]


def older(tokenizer_class, make):
    def build(folder):
        fields = json.dumps({"tokenizer_class": tokenizer_class})
        (make(folder) / "tokenizer_config.json").write_text(fields)
        return HuggingFaceTokenizer.from_folder(folder)

    return build


def defined(kind, **options):
    return lambda folder: HuggingFaceTokenizer.from_folder(
        small.definition(folder, kind, **options)
    )


def own(model_type):
    vocabulary = SentencePiece(None, 512, model_type, training_bytes=100_000)
    return lambda folder: vocabulary.build(PythonStdlib(), folder)


def roberta(folder):
    return small.byte_level(folder, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))


def unmarked(folder):
    file = small.definition(folder, "byte_level") / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"decoder": None}))
    return HuggingFaceTokenizer.from_folder(folder)


KINDS = {
    "sentencepiece, bpe": own("bpe"),
    "sentencepiece, unigram": own("unigram"),
    "BERT": older("BertTokenizer", small.wordpiece),
    "RoBERTa": older("RobertaTokenizer", roberta),
    "Qwen 2": older("Qwen2Tokenizer", roberta),
    "T5": older("T5Tokenizer", small.t5),
    "Llama": older("LlamaTokenizer", small.llama),
    "Gemma": older("GemmaTokenizer", small.gemma),
    "DeBERTa": older("DebertaV2Tokenizer", small.deberta),
    "XLM-R": older("XLMRobertaTokenizer", small.xlm_roberta),
    "Marian": older("MarianTokenizer", small.marian),
    "SigLIP": older("SiglipTokenizer", small.siglip),
    "BERT, defined": defined("wordpiece"),
    "RoBERTa, defined": defined("byte_level"),
    "RoBERTa of Markdown": defined("byte_level", lines=MARKDOWN),
    "T5, defined": defined("metaspace"),
    "T5 of Markdown": defined("metaspace", lines=MARKDOWN),
    "Llama, defined": defined("byte_fallback"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_words_begin_behind_white_space(kind, tmp_path):
    tokenizer = KINDS[kind](tmp_path)
    if "Markdown" in kind:
        assert '"##"' in (tmp_path / "tokenizer.json").read_text()
    ids = np.array(tokenizer.encode(TEXT))
    starts = tokenizer.word_starts()
    assert starts.shape == (tokenizer.vocab_size,)
    words = np.split(ids, np.flatnonzero(starts[ids]))
    found = [tokenizer.decode(word).strip() for word in words]
    # White space may have a piece of its own.
    assert [word for word in found if word] == TEXT.split()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (older("CLIPTokenizer", small.clip), "marks the ends of words with '</w>'"),
        (unmarked, r"not known where words begin for the decoders \[\]"),
        (lambda folder: ByteTokenizer(), r"@bytes\(\) does not mark where words begin"),
        (lambda folder: CharacterTokenizer("ab"), r"@characters\(\) does not mark"),
    ],
)
def test_vocabularies_that_do_not_tell_words_are_refused(build, message, tmp_path):
    tokenizer = build(tmp_path)
    with pytest.raises(UserError, match=message):
        tokenizer.word_starts()


def test_whole_words_of_a_vocabulary_without_words_name_the_binding():
    tokenizer = ByteTokenizer(("[CLS]", "[SEP]", "[MASK]"))
    Masking().bind(tokenizer, 32, 30)
    with pytest.raises(UserError, match=r"masking\.whole_words = True: .*bytes"):
        Masking(whole_words=True).bind(tokenizer, 32, 30)
