"""Folders as people have them: prefixes, padded vocabularies, pointers of Git LFS."""

import json

import numpy as np
import pytest
from interop.small_gpt2 import CONFIG, random_tensors, write

import fmjax
from fmjax.errors import UserError
from fmjax.interop.hugging_face import import_model

TOKENS = np.arange(8).reshape(2, 4)
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 548105171\n"
)


def refused(tmp_path, folder, message):
    with pytest.raises(UserError, match=message):
        import_model(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def logits(run):
    return fmjax.load(run)(tokens=TOKENS)["logits"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    import_model(write(folder / "hf", random_tensors()), folder / "run")
    return logits(folder / "run")


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "transformer.transformer.",
        "module._orig_mod.model.transformer.",
    ],
)
def test_prefixes_of_wrappers_are_taken_off(tmp_path, plain, prefix):
    tensors = {f"{prefix}{name}": t for name, t in random_tensors().items()}
    notes = import_model(write(tmp_path / "hf", tensors), tmp_path / "run").notes
    taken = prefix.removesuffix("transformer.")
    assert any(taken in note for note in notes) or prefix == "transformer."
    np.testing.assert_array_equal(logits(tmp_path / "run"), plain)


def test_a_prefix_of_compiled_modules_may_be_inside(tmp_path, plain):
    tensors = {
        name.replace("attn.", "attn._orig_mod.").replace("w", "_orig_mod.w", 1)
        if "wte" in name or "wpe" in name
        else f"_orig_mod.{name}": tensor
        for name, tensor in random_tensors().items()
    }
    import_model(write(tmp_path / "hf", tensors), tmp_path / "run")
    np.testing.assert_array_equal(logits(tmp_path / "run"), plain)


def test_a_prefix_of_some_names_is_not_guessed(tmp_path):
    tensors = random_tensors()
    tensors["module.wte.weight"] = tensors.pop("wte.weight")
    refused(tmp_path, write(tmp_path / "hf", tensors), r"has no wte\.weight")
    # Nor where two names would become one.
    twice = {f"module.{name}": t for name, t in random_tensors().items()}
    twice["module.module.wte.weight"] = twice["module.wte.weight"] + 1
    refused(tmp_path, write(tmp_path / "hf", twice), r"module\.wte\.weight")


def test_biases_of_zeros_that_no_layer_has_are_passed_over(tmp_path, plain):
    zeros = {"lm_head.bias": np.zeros(11, np.float32)}
    import_model(write(tmp_path / "hf", random_tensors() | zeros), tmp_path / "zeros")
    np.testing.assert_array_equal(logits(tmp_path / "zeros"), plain)
    zeros["lm_head.bias"][3] = 1
    write(tmp_path / "hf", random_tensors() | zeros)
    refused(tmp_path, tmp_path / "hf", r"no place for: lm_head\.bias")


def vocabulary(folder, size):
    """Writes a tokenizer of so many tokens."""
    from tokenizers import Tokenizer, models

    ids = {f"t{i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="t0"))
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("tokens", [None, 11, 9])
def test_rows_of_padding_are_left_out(tmp_path, plain, tokens):
    folder = write(tmp_path / "hf", random_tensors())
    rows = random_tensors()["wte.weight"]
    padded = random_tensors() | {"wte.weight": np.pad(rows, ((0, 5), (0, 0)))}
    write(folder, padded)
    if tokens is not None:
        vocabulary(folder, tokens)
    notes = import_model(folder, tmp_path / "run").notes
    assert any("16 rows" in note and "vocab_size of 11" in note for note in notes)
    assert fmjax.load(tmp_path / "run").model.vocab_size == 11
    np.testing.assert_array_equal(logits(tmp_path / "run"), plain)


def test_rows_of_padding_of_an_untied_head_are_left_out(tmp_path):
    tensors = random_tensors()
    head = np.arange(66, dtype=np.float32).reshape(11, 6)
    untied = CONFIG | {"tie_word_embeddings": False}
    write(tmp_path / "hf", tensors | {"lm_head.weight": head}, untied)
    import_model(tmp_path / "hf", tmp_path / "whole")
    padded = np.pad(head, ((0, 21), (0, 0)), constant_values=7)
    write(tmp_path / "hf", tensors | {"lm_head.weight": padded}, untied)
    import_model(tmp_path / "hf", tmp_path / "padded")
    expected = logits(tmp_path / "whole")
    np.testing.assert_array_equal(logits(tmp_path / "padded"), expected)


def test_a_vocabulary_is_as_large_as_its_tokenizer(tmp_path):
    folder = write(tmp_path / "hf", random_tensors(16))
    vocabulary(folder, 14)
    notes = import_model(folder, tmp_path / "run").notes
    assert fmjax.load(tmp_path / "run").model.vocab_size == 14
    assert any("the tokenizer 14 ids: the first 14 are" in note for note in notes)


def test_fewer_rows_are_taken_if_the_tokenizer_has_no_more(tmp_path):
    folder = write(tmp_path / "hf", random_tensors(9))
    refused(tmp_path, folder, r"wte\.weight has shape \(9, 6\)")
    vocabulary(folder, 10)
    refused(tmp_path, folder, r"wte\.weight has shape \(9, 6\)")
    vocabulary(folder, 17)
    refused(tmp_path, folder, r"ids up to 16, config\.json a vocab_size of 11 and .* 9")
    vocabulary(folder, 9)
    notes = import_model(folder, tmp_path / "run").notes
    assert any("only 9 rows" in note for note in notes)
    assert fmjax.load(tmp_path / "run").model.vocab_size == 9


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model"]
)
def test_pointers_of_git_lfs_are_told_of(tmp_path, name):
    folder = write(tmp_path / "hf", random_tensors())
    (folder / name).write_text(POINTER)
    refused(tmp_path, folder, rf"{name} is a pointer of Git LFS.*git lfs pull")


def test_pointers_of_shards_are_told_of(tmp_path):
    folder = write(tmp_path / "hf", random_tensors())
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"wte.weight": "pytorch_model-1.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model-1.bin").write_text(POINTER)
    refused(tmp_path, folder, r"pytorch_model-1\.bin is a pointer of Git LFS")
    # What is not read may be one.
    write(folder, random_tensors())
    (folder / "pytorch_model.bin").write_text(POINTER)
    import_model(folder, tmp_path / "run")


@pytest.mark.parametrize("index", [False, True])
def test_a_folder_whose_files_hold_no_tensors_is_refused(tmp_path, index):
    folder = write(tmp_path / "hf", {})
    if index:
        (folder / "model.safetensors").unlink()
        name = "model.safetensors.index.json"
        (folder / name).write_text('{"weight_map": {}}')
    with pytest.raises(UserError, match="holds no tensors; expected those of a model"):
        import_model(folder, tmp_path / "run")
