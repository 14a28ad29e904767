"""Short chat templates with the behaviour of those of the families in tiny.py."""

LLAMA3 = """{{ bos_token }}{% for m in messages -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

_QWEN_TOOLS = """
{%- if tools %}{{ '\n\n# Tools\n\nYou may call these functions:\n<tools>' }}
{%- for t in tools %}{{ '\n' + t | tojson }}{% endfor %}{{ '\n</tools>' }}{% endif %}{{ '<|im_end|>\n' }}"""
_QWEN_CALLS = """
{%- for call in m.tool_calls or [] %}{{ '\n' if body or not loop.first }}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson }}
{{- '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"""
_QWEN_RESULT = """
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"""
_CHATML_TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"

QWEN2 = (
    """{% set given = messages[0].role == 'system' -%}
{% if given %}{{ '<|im_start|>system\n' + messages[0].content }}
{%- else %}{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
{%- endif %}"""
    + _QWEN_TOOLS
    + """
{%- for m in messages %}{% if m.role == 'tool' %}"""
    + _QWEN_RESULT
    + """
{%- elif m.role == 'assistant' %}{% set body = m.content %}{{ '<|im_start|>assistant\n' + body }}"""
    + _QWEN_CALLS
    + """
{%- elif not (given and loop.first) %}"""
    + _CHATML_TURN
    + """{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
)

QWEN3 = (
    """{% set given = messages[0].role == 'system' -%}
{% if given or tools %}{{ '<|im_start|>system\n' + (messages[0].content if given else '') }}"""
    + _QWEN_TOOLS
    + """{% endif %}
{%- set ns = namespace(query=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{% if m.role == 'tool' %}"""
    + _QWEN_RESULT
    + """
{%- elif m.role == 'assistant' %}{% set body = m.content %}{% set thought = m.reasoning_content or '' %}
{%- if not thought and '</think>' in body %}
{%- set thought = body.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
{%- set body = body.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- '<|im_start|>assistant\n' }}
{%- if loop.index0 > ns.query and (loop.last or thought) %}
{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + body.lstrip('\n') }}{% else %}{{ body }}{% endif %}"""
    + _QWEN_CALLS
    + """{% elif not (given and loop.first) %}"""
    + _CHATML_TURN
    + """{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
)

MISTRAL = """{% set ns = namespace(user=-1, turn=0) -%}
{% set system = messages[0].content + '\n\n' if messages[0].role == 'system' else '' -%}
{% set turns = messages[1:] if system else messages -%}
{% for m in turns %}{% if m.role == 'user' %}{% set ns.user = loop.index0 %}{% endif %}
{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}
{%- if (m.role == 'user') != (ns.turn % 2 == 0) %}
{{- raise_exception('After the optional system message, conversation roles must alternate user/assistant') }}
{%- endif %}{% set ns.turn = ns.turn + 1 %}{% endif %}{% endfor %}
{{- bos_token }}
{%- for m in turns %}{% set last = loop.index0 == ns.user %}{% if m.role == 'user' %}
{%- if last and tools %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + (system if last else '') + m.content + '[/INST]' }}
{%- elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}
{{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson + (']' if loop.last else ', ') }}
{%- endfor %}{{ eos_token }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}
{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + {'content': m.content} | tojson + '[/TOOL_RESULTS]' }}
{%- else %}{{ raise_exception('Only user, assistant and tool roles are supported') }}{% endif %}{% endfor %}"""

GEMMA3 = """{{ bos_token }}{% set system = messages[0].role == 'system' -%}
{% set prefix = messages[0].content + '\n\n' if system else '' -%}
{% for m in (messages[1:] if system else messages) %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (prefix if loop.first else '') }}
{{- m.content | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

PHI3 = """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

SMOLLM3 = (
    """{% set given = messages[0].role == 'system' -%}
{% set system = messages[0].content if given else '' -%}
{% set think = (enable_thinking is not defined or enable_thinking) and '/no_think' not in system -%}
{{ '<|im_start|>system\n## Metadata\n\nReasoning Mode: ' + ('/think' if think else '/no_think') }}
{{- '\n\n## Custom Instructions\n\n' + system.replace('/no_think', '').replace('/think', '').rstrip() }}
{{- '<|im_end|>\n' }}
{%- set empty = '' if think else '<think>\n\n</think>\n\n' %}
{%- for m in messages %}{% if m.role == 'assistant' %}{% generation %}
{{- '<|im_start|>assistant\n' + empty + m.content.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}
{%- elif not (given and loop.first) %}"""
    + _CHATML_TURN
    + """{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' + empty }}{% endif %}"""
)

OLMO2 = """{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}
{%- if m.role != 'assistant' %}{{ '\n' }}{% else %}{{ eos_token + ('' if loop.last else '\n') }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

PHI4 = """{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""

GPT_OSS = """{{ '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n\n' -}}
{{ 'Reasoning: ' + reasoning_effort | default('medium') + '\n\n# Valid channels: analysis, commentary, final.' -}}
{{ '<|end|>' }}{% set given = messages[0].role == 'system' -%}
{% if given or tools %}{{ '<|start|>developer<|message|>' }}
{%- if given %}{{ '# Instructions\n\n' + messages[0].content + '\n\n' }}{% endif %}
{%- if tools %}{{ '# Tools\n\n' + tools | tojson }}{% endif %}{{ '<|end|>' }}{% endif %}
{%- set ns = namespace(call=none) %}
{%- for m in (messages[1:] if given else messages) %}
{%- if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}
{%- elif m.role == 'tool' %}
{%- if not ns.call %}{{ raise_exception('a tool result must follow a tool call') }}{% endif %}
{{- '<|start|>functions.' + ns.call + ' to=assistant<|channel|>commentary<|message|>' }}
{{- m.content | tojson + '<|end|>' }}
{%- elif m.tool_calls %}{% set ns.call = m.tool_calls[0].function.name %}
{%- if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{{- '<|start|>assistant to=functions.' + ns.call + '<|channel|>commentary json<|message|>' }}
{{- m.tool_calls[0].function.arguments | tojson + '<|call|>' }}
{%- elif loop.last and not add_generation_prompt %}
{%- if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}
{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% set ns.call = none %}
{%- endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
