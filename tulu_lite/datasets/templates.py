"""Our chat templates, as jinja text. The bos token is put before them where the model knows it."""

TULU = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>\\n' -}}{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}
{%- elif message['role'] == 'user' -%}
{{- '<|user|>\\n' + message['content'] + '\\n' -}}
{%- elif message['role'] == 'system' -%}
{{- '<|system|>\\n' + message['content'] + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
