"""Chat templates of a tokenizer come along with a model and go out again."""

import json

import pytest
import transformers
from parity.models_of_transformers import ENDS, random_model
from small_tokenizers import byte_level

import fmjax
from fmjax.interop.export import export_model
from fmjax.interop.hugging_face import import_model

CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS = "{% for message in messages %}{{ message['content'] }}#{% endfor %}"
TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def in_files(folder, tokenizer, template):
    """As version 5 of transformers saves them."""
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def in_config(folder, tokenizer, template):
    """As version 4 did: in tokenizer_config.json, named ones as a list."""
    tokenizer.save_pretrained(folder)
    if isinstance(template, dict):
        template = [{"name": n, "template": text} for n, text in template.items()]
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"chat_template": template}
    file.write_text(json.dumps(config))


NAMED = {"default": CHAT, "tool_use": TOOLS}


@pytest.mark.parametrize(
    ("save", "template"),
    [
        (in_files, NAMED),
        pytest.param(in_files, CHAT, marks=pytest.mark.slow),
        pytest.param(in_config, CHAT, marks=pytest.mark.slow),
        pytest.param(in_config, NAMED, marks=pytest.mark.slow),
    ],
)
def test_templates_survive(save, template, tmp_path):
    vocabulary = byte_level(tmp_path / "vocabulary", ("<|endoftext|>",))
    tokenizer = transformers.GPT2TokenizerFast.from_pretrained(vocabulary)
    sizes = dict(n_layer=1, n_embd=6, n_head=2, n_positions=8)
    options = sizes | ENDS | {"vocab_size": len(tokenizer)}
    random_model("GPT2LMHeadModel", options).save_pretrained(tmp_path / "hf")
    save(tmp_path / "hf", tokenizer, template)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.chat_template == template
    import_model(tmp_path / "hf", tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.chat_template == template
    ids = again.apply_chat_template(TURNS, return_dict=False)
    assert ids == theirs.apply_chat_template(TURNS, return_dict=False)
    # A run's own tokenizer is saved and read with them.
    kept = fmjax.load(tmp_path / "run").tokenizer.files
    assert "chat_template" in "".join(kept) + kept["tokenizer_config.json"].decode()
