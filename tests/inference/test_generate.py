"""Generation from texts to texts, and on a mesh."""

import dataclasses
import string

import jax
import numpy as np
import pytest
from random_writers import build
from small_tokenizers import CORPUS, byte_level
from tiers import slow

from fmjax.data.sources.text_files import TextFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import ByteTokenizer, CharacterTokenizer
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError
from fmjax.inference.generate import beam_search, generate, with_prompt
from fmjax.inference.in_batch import text_after
from fmjax.inference.run import Run
from fmjax.inference.sampling import Sampling
from fmjax.inference.token_loop import generate_tokens
from fmjax.models.generation import Generation
from fmjax.models.language.bert import Bert
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.sharding.mesh import MeshConfig
from fmjax.sharding.rules import named_shardings, param_specs
from fmjax.training.experiment import Experiment
from fmjax.training.state import abstract_variables

GREEDY = Sampling(temperature=0.0)
TRAINED = Data(TextTask(TextFiles("text.txt"), Bytes(), name="trained"))


def text_run(tokenizer, data=None, vocab_size=300):
    model, params = build(vocab_size=vocab_size)
    return Run(Experiment(CausalLM(model), data), model, params, tokenizer, 0)


@pytest.mark.parametrize(
    ("data", "text", "prompt"),
    [
        (None, "ab", [100, 101]),  # imported: as its tokenizer has it
        (None, "", [1]),
        (TRAINED, "ab", [1, 100, 101]),  # as documents begin in training
        (TRAINED, "", [1]),
    ],
)
def test_a_prompt_begins_as_documents_do(data, text, prompt):
    run = text_run(ByteTokenizer(), data)
    ids = generate_tokens(
        run.model,
        run.params,
        [prompt],
        max_tokens=9,
        sampling=GREEDY,
        eos_id=1,
        padding_id=0,
        vocab_size=259,
    )[0]
    assert max(ids) < 259
    expected = ByteTokenizer().decode(ids)
    assert generate(run, [text], max_tokens=9, temperature=0.0) == [expected]


def test_a_continuation_is_spelled_behind_its_prompt():
    class Words(CharacterTokenizer):
        """Drops a space in front, as SentencePiece does."""

        def decode(self, ids):
            return super().decode(ids).removeprefix(" ")

    assert text_after(text_run(Words(" ")), [0], [0, 0]) == "  "


def test_text_needs_a_tokenizer_and_a_beginning():
    with pytest.raises(UserError, match="no tokenizer"):
        generate(text_run(None), ["a"])
    with pytest.raises(UserError, match="prompt is empty"):
        generate(text_run(CharacterTokenizer("ab")), [""])
    with pytest.raises(UserError, match="expected a list of texts"):
        generate(text_run(ByteTokenizer()), "a")
    assert generate(text_run(ByteTokenizer()), []) == []


def answering(tokenizer, data=None, style="t5"):
    model, params = build(style, vocab_size=450)
    return Run(Experiment(Seq2SeqLM(model), data), model, params, tokenizer, 0)


@pytest.mark.parametrize("data", [None, TRAINED], ids=["imported", "trained"])
def test_an_encoder_reads_what_it_read_in_training(data, tmp_path):
    files = byte_level(tmp_path, ("<s>", "<pad>", "</s>"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "RobertaTokenizer", "bos_token": "<s>", '
        '"pad_token": "<pad>", "eos_token": "</s>"}'
    )
    tokenizer = HuggingFaceTokenizer.from_folder(files)
    read = [*tokenizer.encode(CORPUS[0][:9]), 2]
    if data is None:  # imported: as its own tokenizer has it
        read = [0, *read]
    run = answering(tokenizer, data)
    (ids,) = generate_tokens(
        run.model,
        run.params,
        [read],
        max_tokens=12,
        sampling=GREEDY,
        eos_id=2,
        padding_id=1,
        vocab_size=tokenizer.vocab_size,
    )
    prompt = CORPUS[0][:9]
    (text,) = generate(run, [prompt], max_tokens=12, temperature=0.0)
    assert text == tokenizer.decode(ids)
    assert with_prompt(run, prompt, text) == text
    assert with_prompt(text_run(ByteTokenizer()), prompt, text) == prompt + text


def test_an_encoder_reads_an_empty_prompt_up_to_its_end():
    run = answering(ByteTokenizer(), TRAINED)
    assert len(generate(run, [""], max_tokens=3)) == 1
    with pytest.raises(UserError, match="no BOS or EOS to start"):
        generate(answering(CharacterTokenizer("ab")), [""])


def test_encoders_are_refused():
    model = Bert(TransformerConfig(1, 4, 1), vocab_size=300, max_length=8)
    run = Run(Experiment(MaskedLM(model)), model, {}, ByteTokenizer(), 0)
    for write in (generate, beam_search):
        with pytest.raises(UserError, match=r"@bert\(\) is an encoder"):
            write(run, ["a"])


def test_beams_give_their_best_and_nothing_is_drawn():
    run = text_run(CharacterTokenizer(string.ascii_lowercase))
    options = {"max_tokens": 6}
    (found,) = beam_search(run, ["ab"], beams=4, n_best=3, **options)
    assert len({text for text, _ in found}) == 3
    assert [score for _, score in found] == sorted((s for _, s in found), reverse=True)
    assert generate(run, ["ab"], beams=4, **options) == [found[0].text]
    for name, value in (("temperature", 0.5), ("top_k", 3), ("top_p", 0.9)):
        with pytest.raises(UserError, match=f"{name} = .*beams = 4"):
            generate(run, ["ab"], beams=4, **{name: value})
    with pytest.raises(UserError, match="has an effect only with beams"):
        generate(run, ["ab"], length_penalty=0.6)


def test_a_long_prompt_is_cut_before_its_end():
    run = answering(ByteTokenizer(), TRAINED)
    with pytest.raises(UserError, match="max_length = 30"):
        beam_search(run, ["x" * 40], max_tokens=4)
    (cut,) = beam_search(run, ["x" * 40], max_tokens=4, longest_prompt=8)
    assert [cut] == beam_search(run, ["x" * 7], max_tokens=4)


@pytest.mark.parametrize("make", [slow(text_run), answering])
def test_a_mesh_changes_nothing(make):
    run = make(ByteTokenizer())
    mesh_config = MeshConfig(data=2, fsdp=2, tensor=2)
    mesh, rules = mesh_config.build(), mesh_config.all_rules
    axes, shapes = abstract_variables(run.config.objective)
    specs = param_specs(axes, shapes, mesh, rules)["params"]
    params = jax.device_put(run.params, named_shardings(specs, mesh))
    spread = dataclasses.replace(run, params=params, rules=rules)
    texts = ["a", "words", "more words"]
    for options in ({"temperature": 1.0}, {"beams": 3}):
        options = {"max_tokens": 9, **options}
        assert generate(spread, texts, **options) == generate(run, texts, **options)


def test_scored_texts_come_with_their_tokens():
    run = text_run(ByteTokenizer())
    options = {"max_tokens": 6, "temperature": 0.7}
    scored = generate(run, ["ab", "c"], logprobs=True, **options)
    assert [sample.text for sample in scored] == generate(run, ["ab", "c"], **options)
    for prompt, sample in zip(("ab", "c"), scored):
        assert sample.text == ByteTokenizer().decode(sample.tokens)
        ids = [*run.tokenizer.encode(prompt), *sample.tokens]
        logits = np.asarray(run(tokens=[ids])["logits"][0], np.float64)
        after = logits[-len(sample.tokens) - 1 : -1]
        chosen = after[np.arange(len(sample.tokens)), sample.tokens]
        expected = chosen - np.log(np.exp(after).sum(-1))
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)
    with pytest.raises(
        UserError, match="logprobs = True is not supported with beams = 2"
    ):
        generate(run, ["ab"], beams=2, logprobs=True)


@pytest.mark.parametrize("seed", [2**32, 2**63, -1])
def test_seeds_out_of_range_are_refused(seed):
    run = text_run(ByteTokenizer())
    with pytest.raises(UserError, match=rf"seed = {seed}: expected 0 to"):
        generate(run, ["ab"], max_tokens=2, seed=seed)
    assert generate(run, ["ab"], max_tokens=2, seed=2**32 - 1)


def test_a_prompt_that_leaves_little_room_is_told(capsys):
    run = text_run(ByteTokenizer())
    (text,) = generate(run, ["x" * 26], temperature=0.0)
    assert capsys.readouterr().err == (
        "max_tokens = 4: no more tokens fit after a prompt of 26 tokens, since "
        "gpt.max_length = 30.\n"
    )
    assert [text] == generate(run, ["x" * 26], temperature=0.0, max_tokens=4)
    assert not capsys.readouterr().err
    with pytest.raises(
        UserError, match="prompt of 30 tokens leaves no room for new tokens"
    ):
        generate(run, ["x" * 30])


def test_a_prompt_that_is_no_utf_8_is_refused():
    prompt = b"caf\xe9".decode("utf-8", "surrogateescape")  # as sys.argv has it
    with pytest.raises(UserError, match=r"prompt .* is not UTF-8 at character 4"):
        generate(text_run(ByteTokenizer()), [prompt], max_tokens=2)


def test_settings_of_the_run_end_texts_and_fill_in_defaults():
    plain = text_run(ByteTokenizer())
    ids = generate_tokens(
        plain.model,
        plain.params,
        [plain.tokenizer.encode("ab")],
        max_tokens=9,
        sampling=GREEDY,
        padding_id=0,
        vocab_size=259,
    )[0]
    settings = Generation(
        eos_token_id=(ids[2], ids[5]), temperature=0.0, max_new_tokens=9
    )
    config = dataclasses.replace(plain.config, generation=settings)
    run = dataclasses.replace(plain, config=config)
    end = min(ids.index(i) for i in settings.eos_token_id)
    assert generate(run, ["ab"]) == [run.tokenizer.decode(ids[:end])]
    short = dataclasses.replace(settings, eos_token_id=(), max_length=5)
    short = dataclasses.replace(short, max_new_tokens=None)
    config = dataclasses.replace(plain.config, generation=short)
    run = dataclasses.replace(plain, config=config)
    assert generate(run, ["ab"]) == [run.tokenizer.decode(ids[:3])]
    with pytest.raises(UserError, match=r"generation\.max_length = 5"):
        generate(run, ["abcdef"])
