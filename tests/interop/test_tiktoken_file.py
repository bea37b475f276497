"""Llama 3's tokenizer.model is read as tiktoken reads it."""

import base64
import itertools

import pytest
import tiktoken
from small_tokenizers import CORPUS, TEXTS, byte_level

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.errors import UserError
from fmjax.interop.containers.tiktoken_file import (
    PATTERN,
    SPECIALS,
    definition,
    is_tiktoken,
)


@pytest.fixture(scope="module")
def ranks():
    """Byte pairs of a small corpus, merged by the most frequent pair, in order."""
    found = {bytes([i]): i for i in range(256)}
    texts = " ".join(CORPUS).split(" ")
    words = [[bytes([b]) for b in word.encode()] for word in texts]
    for rank in range(256, 500):
        counts = {}
        for word in words:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        left, right = max(counts, key=lambda pair: (counts[pair], pair))
        found.setdefault(left + right, rank)
        for word in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == (left, right):
                    word[i : i + 2] = [left + right]
                i += 1
    return {token: i for i, token in enumerate(found)}


@pytest.fixture
def file(ranks, tmp_path):
    lines = [base64.b64encode(token) + b" %d\n" % i for token, i in ranks.items()]
    place = tmp_path / "tokenizer.model"
    place.write_bytes(b"".join(lines))
    return place


def test_ids_are_those_of_tiktoken(ranks, file):
    assert is_tiktoken(file)
    specials = {name: len(ranks) + i for i, name in enumerate(SPECIALS)}
    theirs = tiktoken.Encoding(
        "llama3", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )
    ours = HuggingFaceTokenizer({"tokenizer.json": definition(file).encode()})
    assert ours.vocab_size == theirs.n_vocab
    assert len(specials) == 256
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, allowed_special="all"), text
        assert ours.decode(ids) == text
    assert ours.encode("a<|eot_id|>b") == theirs.encode(
        "a<|eot_id|>b", allowed_special="all"
    )
    assert ours.bos_id == theirs.encode_single_token("<|begin_of_text|>")


def test_other_files_are_not_taken_for_it(file, tmp_path):
    file.write_bytes(b"\n\x0e\n\x05<unk>\x15")
    assert not is_tiktoken(file)
    assert not is_tiktoken(byte_level(tmp_path, ("<s>",)) / "merges.txt")
    file.write_bytes(b"YQ== 0\nYg= 1\n")
    assert is_tiktoken(file)
    with pytest.raises(UserError, match=r"tokenizer\.model, line 2"):
        definition(file)
    file.write_bytes(b"YQ== 0\nYg== 2\n")
    with pytest.raises(UserError, match="ranks are not 0 to 1"):
        definition(file)
