"""Back-translation by runs: against texts of each run by itself; what is refused."""

import dataclasses
import json

import pytest
from written_translators import STACK, write_translator

import fmjax
from fmjax.config.load import load_data
from fmjax.data.sources.pair_files import PairFiles
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.tasks.text_task import TextTask
from fmjax.data.text.corruption.prefix_lm import PrefixLM
from fmjax.data.text.text_data import Data
from fmjax.data.tokenizers.vocabularies import Bytes
from fmjax.errors import UserError
from fmjax.inference.back_translation import BackTranslation, _Chain
from fmjax.inference.generate import beam_search, generate
from fmjax.models.language.gpt import GPT
from fmjax.objectives.causal_lm import CausalLM


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    there = write_translator(folder / "there", 3)
    # What random bytes decode to has three times as many.
    return there, write_translator(folder / "back", 5, length=96)


TEXTS = ["a b", "b c d", "c", "a text that is too long for it"]


def greedy(run, texts, max_tokens):
    return generate(fmjax.load(run), texts, max_tokens=max_tokens, temperature=0)


def test_variants_are_what_the_runs_write_one_after_the_other(runs):
    how = BackTranslation(runs, ("to: ", ""), variants=1, batch_size=4, temperature=0.0)
    pivots = greedy(runs[0], [f"to: {text}" for text in TEXTS[:3]], 24)
    back = greedy(runs[1], pivots, 96)
    assert _Chain(how)(TEXTS, 0) == [*([text] for text in back), []]


@pytest.mark.slow
def test_beams_give_the_best_texts_of_a_single_run(runs):
    how = BackTranslation(runs[:1], variants=3, beams=4, batch_size=4)
    found = beam_search(
        fmjax.load(runs[0]), [*TEXTS[:3], TEXTS[0]], beams=4, n_best=3, max_tokens=24
    )
    expected = [[each.text for each in row] for row in found[:3]]
    assert _Chain(how)(TEXTS, 0) == [*expected, []]


def test_drawn_variants_differ_by_number_and_follow_from_the_seed(runs):
    how = BackTranslation(runs[:1], variants=3, batch_size=4)
    chain = _Chain(how)
    first = chain(TEXTS, 0)
    assert first == chain(TEXTS, 0)
    assert all(len({*row}) == 3 for row in first[:3])
    assert chain(TEXTS, 1)[:3] != first[:3]
    assert _Chain(dataclasses.replace(how, seed=1))(TEXTS, 0) != first
    assert first[3] == []


def test_three_lines_of_gin_and_a_moved_run(runs, tmp_path):
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(TEXTS * 3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "mine.gin").write_text(
        f"include 'data/labelled_records.gin'\nRECORDS = '{tmp_path}/a.jsonl'\n"
        "text_task.tokenizer = @bytes()\ndata.length = 40\n"
        f"data.cache_dir = '{tmp_path}/cache'\n"
        "labelled_records.validation_fraction = 0.0\n"
        "include 'data/back_translation.gin'\n"
        f"RUNS = {runs}\n"
        "back_translation.variants = 2\nback_translation.batch_size = 2\n"
    )
    data = load_data(str(tmp_path / "mine.gin"))
    assert data.augment == (BackTranslation(runs, variants=2, batch_size=2),)
    data.check_training()
    data.prepare()
    data.prepare_training()
    (made,) = (tmp_path / "cache" / "variants").iterdir()
    digest, there = data.fingerprint(), tmp_path / "moved"
    write_translator(there, 3)
    moved = dataclasses.replace(
        data,
        augment=(dataclasses.replace(data.augment[0], runs=(str(there), runs[1])),),
    )
    assert moved.fingerprint() == digest
    moved.prepare_training()
    assert list((tmp_path / "cache" / "variants").iterdir()) == [made]
    other = dataclasses.replace(data.augment[0], runs=runs[::-1])
    assert dataclasses.replace(data, augment=(other,)).fingerprint() != digest


def test_bad_options_are_refused_by_name(runs):
    for options, match in [
        ({"runs": ()}, r"back_translation\.runs = \(\): expected one"),
        ({"prefixes": ("a",)}, r"prefixes = \('a',\): expected 2, one for each"),
        ({"variants": 0}, r"back_translation\.variants = 0: expected at least 1"),
        ({"beams": 3}, r"beams = 3: expected at least back_translation\.variants = 4"),
        ({"temperature": -1.0}, r"back_translation\.temperature = -1"),
        ({"top_p": 1.5}, r"back_translation\.top_p = 1\.5"),
        ({"batch_size": 0}, r"back_translation\.batch_size = 0"),
        ({"seed": -1}, r"back_translation\.seed = -1"),
    ]:
        with pytest.raises(UserError, match=match):
            BackTranslation(**{"runs": runs} | options)


def test_runs_that_do_not_translate_are_refused_by_name(runs, tmp_path):
    text = TextTask(TextFiles(files=str(tmp_path / "none.txt")), Bytes())
    denoising = Data(text, length=16, corruption=PrefixLM())
    gpt = CausalLM(GPT(STACK, vocab_size=259, max_length=24))
    for name, options, match in [
        ("gpt", {"objective": gpt}, r"is of @causal_lm\(\) of @gpt\(\); expected"),
        ("denoising", {"data": denoising}, r"data\.corruption = @prefix_lm\(\); exp"),
        ("labels", {"labels": ("a", "b")}, r"trained to write the labels \('a', 'b'\)"),
    ]:
        run = write_translator(tmp_path / name, 0, **options)
        with pytest.raises(
            UserError, match=rf"back_translation\.runs.*{name} .*{match}"
        ):
            BackTranslation((runs[0], run)).check()
    with pytest.raises(UserError, match=r"back_translation\.runs = .*missing"):
        BackTranslation((str(tmp_path / "missing"),)).check()
    pairs = Data(TextTask(PairFiles(str(tmp_path)), Bytes()), length=16)
    BackTranslation((write_translator(tmp_path / "pairs", 0, pairs),)).check()
