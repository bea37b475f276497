"""Chat templates of published models, which TRL ships, against transformers.

Of most there are two: as published, and marked with `{% generation %}` for training.
"""

import pathlib
import re
import subprocess
import sys
import zipfile

import pytest
import transformers
from chat_templates import SYSTEM, TALK, witness
from small_tokenizers import byte_level

from fmjax.data.records import BadRecord
from fmjax.data.tokenizers import chat_template
from fmjax.data.tokenizers.chat_tokens import BadTemplate, ChatEncoder
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer

pytestmark = pytest.mark.slow

TALKS = [TALK, TALK[:2], [SYSTEM, *TALK]]
# Their turns are rendered otherwise once others follow.
CHANGES = ("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6")
# They read lists of parts alone, which our messages are not.
PARTS_ALONE = ("llava_next",)
# Their marks include a header, or leave out what every turn begins with.
OTHER_STARTS = re.compile("deepseek|gptoss|muse|nemotron|qwen3_[58]|qwen3_6|glm4moe")


@pytest.fixture(scope="module")
def templates(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("trl")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "trl==1.16.0", "--dest", str(folder)], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".jinja")]
        return {pathlib.Path(n).stem: wheel.read(n).decode() for n in names}


@pytest.fixture(scope="module")
def tokenizers(templates, tmp_path_factory):
    """One with what the templates have in angle brackets as special tokens."""
    bars = re.compile(r"<[|｜][^<>\s']+>|<[^<>\s']+[|｜]>")
    marks = {mark for t in templates.values() for mark in bars.findall(t)}
    marks |= {"<start_of_turn>", "<end_of_turn>", "<end_of_utterance>", "<eos>"}
    folder = byte_level(tmp_path_factory.mktemp("hf"), ("<s>", "</s>", *sorted(marks)))
    files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    own = transformers.GPT2Tokenizer(*files, bos_token="<s>", eos_token="</s>")
    own.add_special_tokens({"additional_special_tokens": sorted(marks)})
    own.save_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return theirs, HuggingFaceTokenizer.from_folder(folder)


@pytest.fixture(autouse=True)
def same_date(monkeypatch):
    """What asks for the date gets the fixed one in transformers too."""
    from transformers.utils import chat_template_utils

    class Fixed:
        now = staticmethod(lambda: chat_template.DATE)

    monkeypatch.setattr(chat_template_utils, "datetime", Fixed)


def test_masks_of_marked_templates_are_those_of_transformers(templates, tokenizers):
    theirs, ours = tokenizers
    compared = 0
    for name, template in templates.items():
        if not name.endswith("_training") or name.startswith(PARTS_ALONE):
            continue
        encoder = ChatEncoder(ours, template)
        for talk in TALKS:
            if "System role not supported" in template and talk[0] == SYSTEM:
                with pytest.raises(BadRecord, match="System role not supported"):
                    encoder.encode(talk)
                continue
            ids, mask = encoder.encode(talk)
            expected = witness(theirs, talk, template)
            assert (ids.tolist(), mask.astype(int).tolist()) == expected, name
            encoder.check(talk)
            compared += 1
    assert compared >= 80


def test_masks_without_marks_are_those_with_them_but_for_headers_and_newlines(
    templates, tokenizers
):
    theirs, ours = tokenizers
    compared = 0
    for name, template in templates.items():
        marked = templates.get(f"{name}_training")
        if marked is None or name in PARTS_ALONE:
            continue
        encoder = ChatEncoder(ours, template)
        for talk in TALKS:
            if name in CHANGES and len(talk) > 2:
                with pytest.raises(BadTemplate, match=f"at turn {len(talk) - 2}, of"):
                    encoder.encode(talk)
                continue
            if "System role not supported" in template and talk[0] == SYSTEM:
                continue
            ids, mask = encoder.encode(talk)
            expected, marks = witness(theirs, talk, marked)
            if OTHER_STARTS.match(name):
                continue
            assert ids.tolist() == expected, name
            other = [i for i, a, b in zip(expected, mask, marks) if a != b]
            assert {theirs.decode([i]) for i in other} <= {"\n"}, name
            # No token of the answers differs, and all stop tokens are trained.
            assert not any(a and not b for a, b in zip(mask, marks)), name
            compared += 1
    assert compared >= 40
