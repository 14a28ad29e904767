"""An answer format, and a way to write tool calls, that come from another installed package."""

import json

import pytest
from openai import OpenAI

from tests import tiny
from tests.serving import Scripted
from tunesmith.answer_formats import format, tool_calls
from tunesmith.answer_formats.format import Call, Thought, find
from tunesmith.answer_formats.tool_calls import ToolReader, find_tools
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.registry import Registry

TURNS = """{{ tools | tojson if tools }}{% for m in messages %}[{{ m.role }}]
{%- if m.musing %}#{{ m.musing }}\n{% endif %}{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}CALL{% endfor %}<|im_end|>{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""
WRITES = "!{{ call.function.name }} {{ call.function.arguments | tojson }}\n"
LINES = TURNS.replace("CALL", WRITES)
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"enum": [1]}}}}
TOOLS = [{"type": "function", "function": TOOL}]

FORMAT = '''
"""A line that begins with # is reasoning, one that begins with ! a tool call."""
import json
from tunesmith.answer_formats.format import Call, Thought

class Reader:
    def __init__(self):
        self.text = ""

    def push(self, text):
        *lines, self.text = (self.text + text).split("\\n")
        return [self.part(line) for line in lines]

    def finish(self):
        return [self.part(self.text)]

    def part(self, line):
        if line.startswith("#"):
            return Thought(line[1:])
        return Call(*line[1:].split(" ", 1)) if line.startswith("!") else line

class Lines:
    writes_calls = True

    def message(self, message):
        return {"musing" if key == "reasoning_content" else key: value for key, value in message.items()}

    def shown(self, with_tools):
        return frozenset()

    def begin(self, prompt, call):
        return ""

    def reader(self, prompt, begun, tools):
        return Reader()

    def plain(self, tokenizer, ids):
        return tokenizer.decode(ids, skip_special_tokens=True).replace("#", "")

    def grammar(self, tokenizer, chosen, parallel):
        function = chosen[0]["function"]
        return f'start: "!{function["name"]} " arguments\\narguments: %json {json.dumps(function["parameters"])}\\n'

def find(tokenizer):
    text = tokenizer.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "musing": "c"}])
    return Lines() if "#c\\nb" in text else None
'''

MARKUP = '''
"""NAME!!{...}!!"""
import json
from tunesmith.answer_formats.calls import ARGUMENTS, json_rule, parameters_of

class Shouted:
    last = "!"

    def read(self, text, tools):
        name, _, rest = text.partition("!!")
        arguments, end, _ = rest.partition("!!")
        return ([(name, arguments)], len(name + arguments) + 4) if end else None

    def may_begin(self, text, tools):
        return True

    def rules(self, tokenizer, tools, parallel):
        return f'call: "{tools[0]["function"]["name"]}!!" %json {json.dumps(parameters_of(tools[0]))} "!!"'

def find(turn, name):
    written = f"{name}!!{json.dumps(ARGUMENTS)}!!"
    return (turn.find(written), turn.find(written) + len(written), Shouted()) if written in turn else None
'''


@pytest.fixture
def strange(installed, monkeypatch):
    """Installs a format and makes it known, as a new process would."""

    def install(where, registry: str, package: str, group: str, source: str) -> None:
        installed(group, "strange", source)
        monkeypatch.setattr(where, registry, Registry(package, group))

    return install


def tokenizer(folder, template: str) -> Tokenizer:
    made = tiny.save_tokenizer("qwen3", folder)
    made.chat_template = template
    made.save_pretrained(folder)
    return Tokenizer.load(folder)


def test_a_server_answers_in_a_strangers_format(strange, tmp_path, tokenizers, served):
    pytest.importorskip("llguidance")
    strange(format, "FORMATS", "tunesmith.answer_formats.formats", "tunesmith.answer_formats", FORMAT)
    own = tokenizer(tmp_path / "model", LINES)
    engine = Scripted({"strange": own, "gpt_oss": tokenizers["gpt_oss"]})
    with OpenAI(base_url=f"{served(engine)}/v1", api_key="none", max_retries=0) as client:
        ask = [{"role": "user", "content": "Go."}]
        engine.says = '#One and two.\nThree.\n!add {"a": 1}'
        said = client.chat.completions.create(model="strange", messages=ask, tools=TOOLS).choices[0].message
        assert (said.reasoning_content, said.content) == ("One and two.", "Three.")
        assert [(call.function.name, call.function.arguments) for call in said.tool_calls] == [("add", '{"a": 1}')]
        following = [*ask, {"role": "assistant", "content": "Three.", "reasoning_content": "Hm."}, *ask]
        client.chat.completions.create(model="strange", messages=following)
        assert "[assistant]#Hm.\nThree.<|im_end|>" in engine.prompt()
        engine.says = '!add {"a": 1}'
        client.chat.completions.create(model="strange", messages=ask, tools=TOOLS, tool_choice="required")
        assert engine.asked[-1].constraint is not None
        engine.says = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
        said = client.chat.completions.create(model="gpt_oss", messages=ask).choices[0].message
        assert (said.reasoning_content, said.content) == ("Hm.", "Yes.")
    assert find(own).plain(own, own.encode("#Hm.\nYes.<|im_end|>")[0]) == "Hm.\nYes."


def test_a_strangers_way_to_write_calls_is_read(strange, tmp_path, tokenizers):
    strange(tool_calls, "MARKUPS", "tunesmith.answer_formats.markups", "tunesmith.tool_markups", MARKUP)
    writes = "<tool_call>{{ call.function.name }}!!{{ call.function.arguments | tojson }}!!</tool_call>"
    made = find(tokenizer(tmp_path / "model", TURNS.replace("CALL", writes))).reader("", True, TOOLS)
    text = 'Well. <tool_call>add!!{"a": 1}!!</tool_call>'
    parts = [part for letter in text for part in made.push(letter)] + made.finish()
    (call,) = (part for part in parts if isinstance(part, Call))
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})
    assert "".join(part for part in parts if isinstance(part, str)).strip() == "Well."
    assert not [part for part in parts if isinstance(part, Thought)]
    own = ToolReader(find_tools(tokenizers["qwen3"]), {"add": {}})
    (call,) = own.push('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>') + own.finish()
    assert json.loads(call.arguments) == {"a": 1}
