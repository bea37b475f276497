"""Chat templates of the usual kinds, and a tokenizer of transformers that has them.

Without the marks of `{% generation %}` each renders the same text.
"""

import re
from pathlib import Path

import transformers
from small_tokenizers import byte_level

# Qwen's: a header for every role, a newline after the stop token.
CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}
{{- message.content + '<|im_end|>' }}
{%- endif %}
{{- '\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Llama 3's: BOS first, contents trimmed, no newline.
HEADERS = """\
{% for message in messages %}
{% if loop.first %}{{ bos_token }}{% endif %}
{{ '<|start|>' + message.role + '<|end_of_role|>\n\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content | trim + '<|im_end|>' }}{% endgeneration %}
{%- else %}
{{- message.content | trim + '<|im_end|>' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|start|>assistant<|end_of_role|>\n\n' }}
{%- endif %}"""

# Phi 3's: EOS after the last turn, unless it is to be answered.
LAST_EOS = """\
{% for message in messages %}
{{ '<|' + message.role + '|>\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content + '<|im_end|>' }}
{%- if loop.last and not add_generation_prompt %}{{ '\n' + eos_token }}{% endif %}
{%- endgeneration %}
{%- if not (loop.last and not add_generation_prompt) %}{{ '\n' }}{% endif %}
{%- else %}
{{- message.content + '<|im_end|>\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

# Llama 2's: no header for the assistant, the system prompt within the user's turn.
ALTERNATING = """\
{% if messages[0].role == 'system' %}
{% set system = '<<SYS>>' + messages[0].content + '<</SYS>>' %}
{% set messages = messages[1:] %}
{% else %}
{% set system = '' %}
{% endif %}
{% for message in messages %}
{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user and assistant') }}
{% endif %}
{% if message.role == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.first else '') }}
{{- message.content + ' [/INST]' }}
{%- else %}
{%- generation %}{{ ' ' + message.content + ' ' + eos_token }}{% endgeneration %}
{%- endif %}
{% endfor %}"""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "last_eos": LAST_EOS,
    "alternating": ALTERNATING,
}
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|end_of_role|>", "<|system|>")
SPECIALS += ("<|user|>", "<|assistant|>")

TALK = [
    {"role": "user", "content": " How är you? <b>&amp;</b> "},
    {"role": "assistant", "content": "Fine.\n\nAnd you?"},
    {"role": "user", "content": "{{ fine }}"},
    {"role": "assistant", "content": "Good 😀."},
]
SYSTEM = {"role": "system", "content": "Be brief."}


def unmarked(template: str) -> str:
    """A template without `{% generation %}` that renders the same text."""
    template = template.replace(" endgeneration ", " endif ")
    return re.sub(r"\{%(-?) generation (-?)%\}", r"{%\1 if true \2%}", template)


def tokenizer_with(template: str | None, folder: Path):
    """A byte-level tokenizer with a template, saved in a folder too."""
    byte_level(folder, ("<s>", "</s>", *SPECIALS))
    files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    ends = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = transformers.GPT2Tokenizer(*files, **ends)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS)})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def witness(tokenizer, messages, template: str | None = None, **options):
    """(ids, mask of the assistant's) of transformers."""
    found = tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **options,
    )
    return found["input_ids"], found["assistant_masks"]
