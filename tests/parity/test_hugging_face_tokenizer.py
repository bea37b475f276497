"""Imported tokenizers against the packages that made them."""

import functools
import json

import numpy as np
import pytest

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from tokenizers import (  # noqa: E402
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

import fmjax  # noqa: E402
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer  # noqa: E402
from fmjax.data.tokenizers.tokenizers import load_tokenizer  # noqa: E402
from fmjax.errors import UserError  # noqa: E402
from fmjax.inference.generate import generate  # noqa: E402
from fmjax.interop.hugging_face import import_model  # noqa: E402

CORPUS = ["the cat sat on the mat", "a cat and a hat", "ünïcode → 猫"] * 5
TEXTS = ["the hat", " two  spaces", "new\nlines\n", "ünïcode → 猫 🦆", "a"]


@functools.cache
def byte_level():
    """As GPT-2's: bytes as characters, nothing put in front, an end of documents."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )


@functools.cache
def byte_fallback():
    """As Llama 2's: U+2581 for spaces, bytes for the rare, <s> put in front."""
    specials = ["<unk>", "<s>", "</s>"]
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = specials + spelled + sorted(set("▁abcdehmnost"))
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(specials)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<s>"
    )


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_ids_and_texts_are_theirs(make, tmp_path):
    theirs = make()
    theirs.save_pretrained(tmp_path / "hf")
    HuggingFaceTokenizer.from_folder(tmp_path / "hf").save(tmp_path / "saved")
    ours = load_tokenizer(tmp_path / "saved")
    assert ours.vocab_size == len(theirs)
    assert ours.eos_id == theirs.eos_token_id
    assert ours.pad_id == theirs.pad_token_id
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode([*ids, ours.eos_id, 10_000]) == text


def test_bos_is_what_the_tokenizer_puts_in_front(tmp_path):
    byte_level().save_pretrained(tmp_path / "a")
    byte_fallback().save_pretrained(tmp_path / "b")
    assert HuggingFaceTokenizer.from_folder(tmp_path / "a").bos_id is None
    assert HuggingFaceTokenizer.from_folder(tmp_path / "b").bos_id == 1


@pytest.mark.parametrize(("make", "in_front"), [(byte_level, 0), (byte_fallback, 1)])
def test_bytes_of_tokens_add_up_to_the_texts(make, in_front, tmp_path):
    make().save_pretrained(tmp_path)
    tokenizer = HuggingFaceTokenizer.from_folder(tmp_path)
    sizes = tokenizer.token_bytes()
    for text in TEXTS:
        total = sizes[tokenizer.encode(text)].sum()
        assert total == len(text.encode()) + in_front
    assert sizes[tokenizer.eos_id] == 0


def test_bytes_of_other_decoders_are_not_guessed(tmp_path):
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="expected ByteLevel"):
        HuggingFaceTokenizer.from_folder(tmp_path).token_bytes()


def test_a_damaged_file_is_named(tmp_path):
    assert HuggingFaceTokenizer.from_folder(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json is not valid"):
        HuggingFaceTokenizer.from_folder(tmp_path)
    # Here the package panics: the two pieces join to none that it knows.
    damaged = json.loads(byte_level().backend_tokenizer.to_str())
    damaged["model"]["vocab"] = {"a": 0, "b": 1}
    damaged["model"]["merges"] = [["a", "b"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"tokenizer\.json is not valid"):
        HuggingFaceTokenizer.from_folder(tmp_path)


def test_an_imported_run_writes_the_text_that_transformers_writes(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = byte_fallback()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "hf")
    theirs.save_pretrained(tmp_path / "hf")
    import_model(tmp_path / "hf", tmp_path / "run")
    run = fmjax.load(tmp_path / "run")
    assert json.loads((tmp_path / "run/tokenizer/fmjax_tokenizer.json").read_text())
    with torch.no_grad():
        logits = model(**theirs("the cat", return_tensors="pt")).logits
        # Ids of the model past the tokenizer's are not written.
        ids = theirs("the cat")["input_ids"]
        for _ in range(12):
            step = model(torch.tensor([ids])).logits[0, -1, : len(theirs)]
            ids.append(int(step.argmax()))
            if ids[-1] == 2:
                break
    tokens = [run.tokenizer.bos_id, *run.tokenizer.encode("the cat")]
    np.testing.assert_allclose(run(tokens=[tokens])["logits"], logits, atol=1e-4)
    expected = theirs.decode(ids, skip_special_tokens=True)
    written = generate(run, ["the cat"], max_tokens=12, temperature=0.0)
    assert "the cat" + written[0] == expected


def test_a_vocabulary_larger_than_the_models_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    del torch
    config = transformers.GPT2Config(vocab_size=250, n_embd=8, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "hf")
    byte_level().save_pretrained(tmp_path / "hf")
    with pytest.raises(UserError, match="vocab_size of 250"):
        import_model(tmp_path / "hf", tmp_path / "run")
