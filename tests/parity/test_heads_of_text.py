"""Heads of texts, of tokens and of answers are those of transformers, both ways."""

import json

import numpy as np
import pytest
import torch
import transformers
from parity.case import HEADS
from parity.decoders import DECODERS, GPT2
from parity.encoder_decoders import BART, ENCODER_DECODERS
from parity.encoders import BERT, ENCODERS
from parity.models_of_transformers import (
    close,
    comes_back,
    imported,
    random_model,
    text,
)
from small_tokenizers import byte_level, wordpiece
from tiers import slow

import fmjax
from fmjax.errors import UserError
from fmjax.interop.families import FAMILIES
from fmjax.interop.hugging_face import import_model

# Of one stack, and of encoder-decoders that read the same text on both sides.
CASES = DECODERS | ENCODERS
HEADED = {
    f"{name}, {task}": (case, task)
    for name, case in CASES.items()
    for task in case.heads.split()
}
READ_TWICE = {
    f"{name}, {task}": (case, task)
    for name, case in ENCODER_DECODERS.items()
    for task in case.heads.split()
}
# Of small vocabularies; a decoder starts with EOS, as mBART's does whatever is said.
SPECIALS = {
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
QUICK = (
    *("bert, answers", "deberta, tokens", "gpt2, texts", "llama, tokens"),
    "bart, texts",
)


def test_the_names_are_those_of_transformers():
    for family in FAMILIES:
        for name in family.architectures:
            if name.endswith(tuple(HEADS.values())):
                assert hasattr(transformers, name), name


def test_every_head_is_compared():
    compared = {
        case.class_name(HEADS[task])
        for case, task in (*HEADED.values(), *READ_TWICE.values())
    }
    names = {name for family in FAMILIES for name in family.architectures}
    assert compared == {name for name in names if name.endswith(tuple(HEADS.values()))}


def headed(case, task, **options):
    """A model of a family with the head of a task, of 5 labels where it has labels."""
    if task != "answers":
        options |= {"id2label": {i: f"kind {i}" for i in range(5)}}
    return random_model(case.class_name(HEADS[task]), {**case.options, **options})


@pytest.mark.parametrize("name", [n if n in QUICK else slow(n) for n in HEADED])
def test_heads_are_theirs_and_go_back(name, tmp_path):
    case, task = HEADED[name]
    labels = task != "answers"
    model = headed(case, task)
    tokens, mask = text()
    # Padding by the id of padding, for decoders find the last token by it.
    tokens[~mask] = 0
    run = imported(model, tmp_path)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()
        )
    loaded = fmjax.load(run)
    ours = loaded(tokens=tokens, padding_mask=mask)
    if task == "texts":
        close(ours["class_logits"], theirs.logits)
    elif task == "tokens":
        close(ours["token_logits"], theirs.logits, mask)
    else:
        ends = torch.stack([theirs.start_logits, theirs.end_logits], -1)
        close(ours["span_logits"], ends, mask)
    if labels:
        assert loaded.config.labels == tuple(f"kind {i}" for i in range(5))
    again = comes_back(model, run, tmp_path / "again")
    assert type(again) is type(model)
    if labels:
        assert again.config.id2label == model.config.id2label


@pytest.mark.parametrize("name", [n if n in QUICK else slow(n) for n in READ_TWICE])
def test_heads_of_encoder_decoders_are_theirs(name, tmp_path):
    case, task = READ_TWICE[name]
    answers = task == "answers"
    model = headed(case, task, **SPECIALS)
    run = imported(model, tmp_path)
    tokens, mask = text()
    tokens[~mask] = 0
    # A text ends in EOS, which the head reads.
    tokens[np.arange(4), mask.sum(1) - 1] = 1
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()
        )
    loaded = fmjax.load(run)
    shifted = np.roll(tokens, 1, 1)
    shifted[:, 0] = loaded.model.start_id
    ours = loaded(
        encoder_tokens=tokens,
        encoder_segment_ids=mask.astype(int),
        decoder_tokens=shifted,
        decoder_segment_ids=mask.astype(int),
    )
    if answers:
        ends = torch.stack([theirs.start_logits, theirs.end_logits], -1)
        close(ours["span_logits"], ends, mask)
    else:
        close(ours["class_logits"], theirs.logits)
    again = comes_back(model, run, tmp_path / "again")
    assert type(again) is type(model)


SENTENCES = ["the cat sat", "a lazy dog jumps over the mat. " * 2, "x", "ein Hund"]


def classifier(folder, tokenizer, architecture, options):
    """A model of transformers with a tokenizer, and the run that it is imported as."""
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model = random_model(architecture, options | sizes)
    tokenizer.save_pretrained(folder / "hf")
    return model, fmjax.load(imported(model, folder))


def test_pairs_are_classified_as_transformers_does(tmp_path):
    vocabulary = wordpiece(tmp_path / "vocabulary")
    tokenizer = transformers.BertTokenizer.from_pretrained(vocabulary)
    labels = {"id2label": dict(enumerate(("no", "yes", "maybe")))}
    options = BERT | {"max_position_embeddings": 64, "num_labels": 3} | labels
    options |= {"num_hidden_layers": 1}
    name = "BertForSequenceClassification"
    model, run = classifier(tmp_path, tokenizer, name, options)
    pairs = [(first, second) for first in SENTENCES for second in SENTENCES]
    # More than one batch, so that rows come back in their order.
    found = run.classify([*pairs, *pairs, *SENTENCES])
    firsts, seconds = map(list, zip(*pairs, strict=True))
    batches = [tokenizer(firsts, seconds, padding=True, return_tensors="pt")] * 2
    batches += [tokenizer(SENTENCES, padding=True, return_tensors="pt")]
    with torch.no_grad():
        logits = torch.cat([model(**batch).logits for batch in batches])
    close(found.logits, logits)
    close(found.probabilities, torch.softmax(logits, 1))
    assert found.labels == ("no", "yes", "maybe")
    assert found.names == [model.config.id2label[int(i)] for i in logits.argmax(1)]
    with pytest.raises(UserError, match="scores of 3 classes"):
        found.scores  # noqa: B018
    with pytest.raises(
        UserError, match=r"texts\[1\] has \d+ tokens, more than .* = 64"
    ):
        run.classify(["a", "the cat " * 100])
    long = tokenizer(["the cat " * 100], truncation=True, max_length=64)
    with torch.no_grad():
        expected = model(torch.tensor(long["input_ids"])).logits
    close(run.classify(["the cat " * 100], truncate=True).logits, expected)
    with pytest.raises(UserError, match="texts is one text"):
        run.classify("a text")


def test_a_model_of_several_labels_is_imported_as_one(tmp_path):
    vocabulary = wordpiece(tmp_path / "vocabulary")
    tokenizer = transformers.BertTokenizer.from_pretrained(vocabulary)
    options = BERT | {"max_position_embeddings": 64, "num_labels": 3}
    options |= {"num_hidden_layers": 1, "problem_type": "multi_label_classification"}
    name = "BertForSequenceClassification"
    model, run = classifier(tmp_path, tokenizer, name, options)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    found = run.classify(SENTENCES)
    close(found.probabilities, torch.sigmoid(logits))
    wanted = [[f"LABEL_{i}" for i in np.flatnonzero(row > 0)] for row in logits]
    assert [list(each) for each in found.sets] == wanted
    again = comes_back(model, run.directory, tmp_path / "again")
    assert again.config.problem_type == "multi_label_classification"
    config = model.config.to_dict() | {"problem_type": "ranking"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="problem_type = 'ranking' is not supported"):
        import_model(tmp_path / "hf", tmp_path / "other")


def test_rewards_are_those_of_transformers(tmp_path):
    vocabulary = byte_level(tmp_path / "vocabulary", ("<|endoftext|>", "<pad>"))
    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(
        vocabulary, pad_token="<pad>"
    )
    options = GPT2 | {"n_positions": 64, "num_labels": 1, "n_layer": 1}
    name = "GPT2ForSequenceClassification"
    model, run = classifier(tmp_path, tokenizer, name, options)
    found = run.classify(SENTENCES)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        close(found.scores, model(**batch).logits[:, 0])
    assert found.labels == ("LABEL_0",)
    model = random_model("GPT2LMHeadModel", GPT2)
    model.save_pretrained(tmp_path / "plain")
    import_model(tmp_path / "plain", tmp_path / "other")
    with pytest.raises(UserError, match=r"@gpt\(\) has no head that classifies texts"):
        fmjax.load(tmp_path / "other").classify(["a"])


def test_an_encoder_decoder_classifies_what_both_sides_read(tmp_path):
    specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    vocabulary = byte_level(tmp_path / "vocabulary", specials)
    tokenizer = transformers.BartTokenizerFast.from_pretrained(vocabulary)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    options = BART | SPECIALS | ids | {"decoder_start_token_id": tokenizer.eos_token_id}
    options |= {"max_position_embeddings": 64, "num_labels": 2}
    name = "BartForSequenceClassification"
    model, run = classifier(tmp_path, tokenizer, name, options)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    names = ("input_ids", "attention_mask")
    with torch.no_grad():
        expected = model(**{name: batch[name] for name in names}).logits
    close(run.classify(SENTENCES).logits, expected)
    close(run.classify(SENTENCES, batch_size=3).logits, expected)
