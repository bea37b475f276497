"""The chat template of `conversation_files.chat_template = 'plain'`, in Jinja."""

PLAIN = """\
{{ bos_token }}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- 'Assistant:\\n' }}
{%- generation %}{{ message.content + eos_token }}{% endgeneration %}
{{- '\\n' }}
{%- elif message.role in ('system', 'user') %}
{{- message.role | capitalize + ':\\n' + message.content + '\\n' }}
{%- else %}
{{- raise_exception('expected the roles system, user and assistant, not '
    + message.role) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"""
