"""Chat templates that the families of tests/tiny.py do not have: our own short writing of what others' do."""

LLAMA = """{{ bos_token }}{% if tools %}{{ '<|start_header_id|>system<|end_header_id|>\n\n' + tools | tojson }}
{{- '<|eot_id|>' }}{% endif %}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
{%- if m.tool_calls %}{{ '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
{{- m.tool_calls[0].function.arguments | tojson + '}' }}{% else %}{{ m.content }}{% endif %}{{ '<|eot_id|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

_TOOLS = """{% if tools %}{{ '<|im_start|>system\n<tools>' }}{% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}
{{- '\n</tools><|im_end|>\n' }}{% endif %}"""

CODER = (
    _TOOLS
    + """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first }}
{{- '<tool_call>\n<function=' + call.function.name + '>\n' }}
{%- for key, value in call.function.arguments | items %}
{{- '<parameter=' + key + '>\n' + (value if value is string else value | tojson) + '\n</parameter>\n' }}{% endfor %}
{{- '</function>\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
)

THINKER = (
    _TOOLS
    + """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and (loop.last or m.tool_calls) %}
{{- '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first }}
{{- '<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' + ('<think>\n\n</think>\n\n' if enable_thinking is defined
and not enable_thinking else '<think>\n') }}{% endif %}"""
)
"""Opens the reasoning itself."""

DISTILLED = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] }}
{{- '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"""
"""Opens the reasoning itself, and drops it from messages."""

HEADED = """{% for m in messages %}{{ '<' + m.role + '>\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"""
"""Heads its turns with what looks like a mark of reasoning."""

FIRST_SYSTEM = """{% if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content }}
{{- '<|im_end|>\n' }}
{%- endif %}{% for m in messages %}{% if m.role in ('user', 'assistant') %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
"""Writes a system turn that stands first, and drops others and tools without a word."""

_BEGIN = """{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"""
_END = """{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def _calls(before: str, call: str, after: str, between: str = "") -> str:
    """A template that writes calls in a section."""
    return (
        _BEGIN + "{% if m.tool_calls %}" + before + "{% for call in m.tool_calls %}{% set f = call.function %}"
        "{% set values = f.arguments %}"
        + call
        + "{% if not loop.last %}"
        + between
        + "{% endif %}{% endfor %}"
        + after
        + "{% endif %}"
        + _END
    )


_TEXT = "{{ value if value is string else value | tojson }}"
_JSON = "{{ values | tojson }}"
_KEYWORDS = """{{ f.name }}({% for key, value in values | items %}{{ key + '=' + value | tojson }}
{%- if not loop.last %}{{ ', ' }}{% endif %}{% endfor %})"""
_QUOTED = """{% macro told(value) %}{% if value is string %}{{ '<|"|>' + value + '<|"|>' }}
{%- elif value is mapping %}{{ '{' }}{% for key, inner in value | items %}{{ key }}:{{ told(inner) }}
{%- if not loop.last %},{% endif %}{% endfor %}{{ '}' }}
{%- elif value is iterable %}[{% for inner in value %}{{ told(inner) }}{% if not loop.last %},{% endif %}{% endfor %}]
{%- else %}{{ value | tojson }}{% endif %}{% endmacro -%}"""

CALLS = {
    "mistral_2025": (_calls("", "[TOOL_CALLS]{{ f.name }}[ARGS]" + _JSON, ""), ("[TOOL_CALLS]", "[ARGS]")),
    "mistral_ids": (
        _calls("", "[TOOL_CALLS]{{ f.name }}[CALL_ID]{{ call.id }}[ARGS]" + _JSON, ""),
        ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    ),
    "deepseek": (
        _calls(
            "<|calls|>",
            "<|call|>function<|sep|>{{ f.name }}\n```json\n" + _JSON + "\n```<|call_end|>",
            "<|calls_end|>",
            "\n",
        ),
        ("<|calls|>", "<|call|>", "<|sep|>", "<|call_end|>", "<|calls_end|>"),
    ),
    "deepseek_text": (
        _calls(
            "<|calls|>",
            "<|call|>function<|sep|>{{ f.name + '\n```json\n' + values }}\n```<|call_end|>",
            "<|calls_end|>",
            "\n",
        ),
        ("<|calls|>", "<|call|>", "<|sep|>", "<|call_end|>", "<|calls_end|>"),
    ),
    "kimi": (
        _calls(
            "<|section|>",
            "<|call|>functions.{{ f.name }}:{{ loop.index0 }}<|args|>" + _JSON + "<|call_end|>",
            "<|section_end|>",
        ),
        ("<|section|>", "<|call|>", "<|args|>", "<|call_end|>", "<|section_end|>"),
    ),
    "hunyuan": (
        _calls(
            "<tool_calls>\n",
            "<tool_call>{{ f.name }}\n```json\n" + _JSON + "\n```</tool_call>",
            "\n</tool_calls>",
            "\n",
        ),
        (),
    ),
    "glm": (
        _calls(
            "",
            "\n<tool_call>{{ f.name }}{% for key, value in values | items %}"
            "\n<arg_key>{{ key }}</arg_key>\n<arg_value>" + _TEXT + "</arg_value>{% endfor %}\n</tool_call>",
            "",
        ),
        ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    "glm_4_7": (
        _calls(
            "",
            "<tool_call>{{ f.name }}{% for key, value in values | items %}"
            "<arg_key>{{ key }}</arg_key><arg_value>" + _TEXT + "</arg_value>{% endfor %}</tool_call>",
            "",
        ),
        (),
    ),
    "minimax": (
        _calls(
            "\n<minimax:tool_call>\n",
            '<invoke name="{{ f.name }}">{% for key, value in values | items %}'
            '\n<parameter name="{{ key }}">' + _TEXT + "</parameter>{% endfor %}\n</invoke>",
            "\n</minimax:tool_call>",
            "\n",
        ),
        ("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    "typed": (
        _calls(
            "<|DSML|calls>\n",
            '<|DSML|invoke name="{{ f.name }}">{% for key, value in values | items %}'
            "\n<|DSML|parameter name=\"{{ key }}\" string=\"{{ 'true' if value is string else 'false' }}\">"
            + _TEXT
            + "</|DSML|parameter>{% endfor %}\n</|DSML|invoke>",
            "\n</|DSML|calls>",
            "\n",
        ),
        ("|DSML|",),
    ),
    "cohere": (
        _calls(
            "<|action|>[\n",
            """    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ f.name }}", """
            """"parameters": """ + _JSON + "}",
            "\n]<|action_end|>",
            ",\n",
        ),
        ("<|action|>", "<|action_end|>"),
    ),
    "apertus": (
        _calls("<|tools|>[", """{{ {f.name: values} | tojson }}""", "]<|tools_end|>", ", "),
        ("<|tools|>", "<|tools_end|>"),
    ),
    "minimax_m1": (
        _calls("<tool_calls>\n", "{{ {'name': f.name, 'arguments': values} | tojson }}\n", "</tool_calls>"),
        (),
    ),
    "lfm2": (_calls("<|call|>[", _KEYWORDS, "]<|call_end|>", ", "), ("<|call|>", "<|call_end|>")),
    "lfm2_in_text": (_BEGIN + _END, ("<|tool_call_start|>", "<|tool_call_end|>")),
    "llama4": (_calls("[", _KEYWORDS, "]", ", "), ()),
    "gemma4": (
        _QUOTED + _calls("", "<|tool_call>call:{{ f.name }}{{ told(values) }}<tool_call|>", ""),
        ("<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
}
"""Templates by name, with their special tokens: how families write calls."""
