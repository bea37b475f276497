"""Generation by the settings of generation_config.json, as transformers generates."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from parity.models_of_transformers import (
    ENDS,
    LENGTH,
    VOCAB,
    edit_config,
    imported,
    random_model,
)
from small_tokenizers import byte_level
from tiers import slow

import fmjax
from fmjax.cli.main import main
from fmjax.errors import UserError
from fmjax.inference.beam_search import beam_search_tokens
from fmjax.inference.generate import generate
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import generate_tokens
from fmjax.interop.hugging_face import import_model

SIZES = dict(vocab_size=VOCAB, n_embd=30, n_layer=2, n_head=5, n_positions=LENGTH)
SIDES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 5), ("ffn_dim", 44))
}
BART = dict(vocab_size=VOCAB, d_model=30, max_position_embeddings=LENGTH, **SIDES)
MARIAN = {**BART, "pad_token_id": VOCAB - 1, "decoder_start_token_id": VOCAB - 1}
MODELS = {
    "gpt2": ("GPT2LMHeadModel", {**SIZES, **ENDS}),
    "bart": ("BartForConditionalGeneration", BART),
    "marian": ("MarianMTModel", MARIAN),
}
# As facebook/bart-large-cnn has them, and Marian's models.
SUMMARY = dict(
    forced_bos_token_id=0,
    forced_eos_token_id=2,
    no_repeat_ngram_size=2,
    min_length=6,
    length_penalty=2.0,
    early_stopping=True,
    num_beams=4,
)
SETTINGS = {
    "repetition": ("gpt2", {"repetition_penalty": 1.7}),
    "unigrams": ("bart", {"no_repeat_ngram_size": 1, "forced_eos_token_id": [2, 3]}),
    "lengths": ("gpt2", {"min_length": 12, "num_beams": 3, "length_penalty": 0.7}),
    "new tokens": (
        "gpt2",
        {"min_new_tokens": 5, "num_beams": 2, "early_stopping": "never"},
    ),
    "summary": ("bart", SUMMARY),
    "summary to the end": ("bart", SUMMARY | {"early_stopping": False}),
    "shorter": ("bart", SUMMARY | {"length_penalty": -0.8, "early_stopping": "never"}),
    "marian": (
        "marian",
        {
            "bad_words_ids": [[VOCAB - 1]],
            "forced_eos_token_id": 0,
            "num_beams": 4,
            "renormalize_logits": True,
        },
    ),
    "suppressed": ("bart", {"suppress_tokens": [], "begin_suppress_tokens": []}),
}


def with_settings(name, folder):
    """Their model, ours, and prompts; some ids of a free run are excluded or ends."""
    style, settings = SETTINGS[name]
    settings = dict(settings)
    theirs = random_model(*MODELS[style])
    prompts = np.random.default_rng(2).integers(3, VOCAB - 1, size=(3, 7))
    theirs.generation_config = transformers.GenerationConfig(
        eos_token_id=None,
        pad_token_id=theirs.config.pad_token_id,
        decoder_start_token_id=getattr(theirs.config, "decoder_start_token_id", None),
    )
    (free, other, _) = written_by(theirs, prompts, max_new_tokens=12, num_beams=1)
    if "suppress_tokens" in settings:
        settings["suppress_tokens"] = [free[2], other[3]]
        settings["begin_suppress_tokens"] = [free[0], other[0]]
        settings["bad_words_ids"] = [free[3:5], other[1:4], [other[5]]]
    settings["eos_token_id"] = sorted({free[5], other[4]})
    theirs.generation_config.update(**settings)
    ours = fmjax.load(imported(theirs, folder))
    return theirs, ours, prompts, free


def written_by(theirs, prompts, **options):
    """What transformers generates behind each prompt, or the decoder's start."""
    with torch.no_grad():
        found = theirs.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(prompts.shape).long(),
            do_sample=False,
            **options,
        )
    begun = 1 if theirs.config.is_encoder_decoder else prompts.shape[1]
    return found[:, begun:].tolist()


def cut(row, ends, most):
    """The ids up to the first that ends a text."""
    stops = [i for i, token in enumerate(row) if token in ends]
    return row[: stops[0] + 1 if stops else most]


ONE_OF_EACH_KIND = ("repetition", "summary", "marian")


@pytest.mark.parametrize(
    "name",
    [name if name in ONE_OF_EACH_KIND else slow(name) for name in SETTINGS],
)
def test_greedy_texts_and_beams_are_theirs(name, tmp_path):
    theirs, ours, prompts, free = with_settings(name, tmp_path)
    settings = ours.config.generation
    ends = {*settings.eos_token_id}
    options = dict(max_tokens=12, generation=settings)
    greedy = generate_tokens(
        ours.model, ours.params, prompts.tolist(), sampling=Sampling(0.0), **options
    )
    expected = written_by(theirs, prompts, max_new_tokens=12, num_beams=1)
    assert greedy == [cut(row, ends, 12) for row in expected]
    assert greedy[0] != free, "the settings make no difference"
    beams = max(2, settings.num_beams)
    found = beam_search_tokens(
        ours.model,
        ours.params,
        prompts.tolist(),
        beams=beams,
        length_penalty=settings.length_penalty,
        penalty_form="power",
        early_stopping=settings.early_stopping,
        **options,
    )
    expected = written_by(theirs, prompts, max_new_tokens=12, num_beams=beams)
    got = [best.tokens for best, *_ in found]
    assert got == [cut(row, ends, 12) for row in expected]


def test_sampling_draws_only_what_settings_allow(tmp_path):
    _, ours, prompts, _ = with_settings("suppressed", tmp_path)
    settings = ours.config.generation
    drawn = generate_tokens(
        ours.model,
        ours.params,
        prompts.tolist() * 20,
        max_tokens=12,
        sampling=Sampling(1.0),
        generation=settings,
    )
    banned = {*settings.suppress_tokens, *(w[0] for w in settings.bad_words_ids[2:])}
    assert banned
    assert not banned & {i for row in drawn for i in row}
    assert not {*settings.begin_suppress_tokens} & {row[0] for row in drawn}


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_any_listed_id_ends_a_text(where, tmp_path):
    theirs = random_model(*MODELS["gpt2"])
    theirs.save_pretrained(tmp_path / "hf")
    prompt = np.array([[97, 98]])
    (free,) = written_by(theirs, prompt, max_new_tokens=12, eos_token_id=None)
    ends = [free[6], free[4], 2]
    expected = written_by(theirs, prompt, max_new_tokens=12, eos_token_id=ends)
    assert len(expected[0]) < 12
    for file in ("generation_config.json", "config.json"):
        path = tmp_path / "hf" / file
        told = json.loads(path.read_text())
        told["eos_token_id"] = ends if file == where else None
        path.write_text(json.dumps(told))
    import_model(tmp_path / "hf", tmp_path / "run")
    ours = fmjax.load(tmp_path / "run")
    assert ours.config.generation.eos_token_id == tuple(ends)
    written = generate_tokens(
        ours.model,
        ours.params,
        prompt.tolist(),
        max_tokens=12,
        sampling=Sampling(0.0),
        generation=ours.config.generation,
    )
    assert written == expected


def text_model(folder, **settings):
    """A saved model of texts: their model, and its tokenizer."""
    byte_level(folder, ("<s>", "<pad>", "</s>"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "RobertaTokenizer", "bos_token": "<s>", '
        '"pad_token": "<pad>", "eos_token": "</s>"}'
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    sizes = {**BART, "vocab_size": len(tokenizer)}
    theirs = random_model("BartForConditionalGeneration", sizes)
    theirs.generation_config.update(**settings)
    theirs.save_pretrained(folder)
    return theirs, tokenizer


def test_texts_are_generated_by_the_settings_unless_told_otherwise(tmp_path, capsys):
    settings = SUMMARY | {"max_length": 14, "eos_token_id": [2, 9, 40]}
    theirs, tokenizer = text_model(tmp_path / "hf", **settings)
    text = "The quick fox"
    read = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        searched = theirs.generate(**read)[0]
        greedy = theirs.generate(**read, num_beams=1)[0]
    assert len(searched) <= 14
    run = tmp_path / "run"
    assert main(["import", str(tmp_path / "hf"), str(run)]) == 0
    for options, ids in (([], searched), (["--temperature", "0"], greedy)):
        capsys.readouterr()
        assert main(["generate", str(run), "--prompt", text, *options]) == 0
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        assert capsys.readouterr().out == f"{expected}\n"
    assert not torch.equal(searched, greedy)


def test_sampling_defaults_come_from_the_settings(tmp_path):
    theirs, tokenizer = text_model(tmp_path / "hf", do_sample=True, top_k=1)
    read = tokenizer("The dog", return_tensors="pt")
    with torch.no_grad():
        likeliest = theirs.generate(**read, do_sample=False, max_new_tokens=9)[0]
    import_model(tmp_path / "hf", tmp_path / "run")
    run = fmjax.load(tmp_path / "run")
    expected = tokenizer.decode(likeliest, skip_special_tokens=True)
    texts = {generate(run, ["The dog"], max_tokens=9, seed=i)[0] for i in range(3)}
    assert texts == {expected}
    free = {
        generate(run, ["The dog"], max_tokens=9, seed=i, top_k=400)[0] for i in range(3)
    }
    assert len(free) > 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_beams": 4, "num_beam_groups": 2}, "num_beam_groups = 2"),
        ({"typical_p": 0.9}, "typical_p = 0.9"),
        ({"do_sample": True, "num_beams": 3}, "num_beams = 3"),
        ({"stop_strings": ["x"]}, "stop_strings"),
        ({"bad_words_ids": [[VOCAB]]}, f"bad_words_ids = {VOCAB}"),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id = 5"),
        ({"some_sampler": 0.5}, "some_sampler = 0.5"),
        ({"suppress_tokens": 3.5}, "suppress_tokens = 3.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0"),
    ],
)
def test_settings_without_a_counterpart_are_refused_by_name(settings, named, tmp_path):
    random_model("BartForConditionalGeneration", BART).save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(UserError, match=re.escape(named)):
        import_model(tmp_path / "hf", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    import_model(tmp_path / "hf", tmp_path / "run", ignore=[*settings])


def test_an_older_folder_has_its_settings_in_config_json(tmp_path):
    random_model("BartForConditionalGeneration", BART).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").unlink()
    edit_config(tmp_path / "hf", num_beams=3, min_length=4, forced_bos_token_id=0)
    edit_config(tmp_path / "hf", task_specific_params={"x": {"min_length": 9}})
    import_model(tmp_path / "hf", tmp_path / "run")
    settings = fmjax.load(tmp_path / "run").config.generation
    assert (settings.num_beams, settings.min_length) == (3, 4)
    assert settings.forced_bos_token_id == 0
