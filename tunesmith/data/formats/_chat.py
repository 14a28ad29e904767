"""What all chat formats end in: messages checked and put into one shape."""

import json
from typing import Any

from tunesmith.data.containers import parse_json
from tunesmith.data.rows import Chat, RowProblem

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "function_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "function_response": "tool",
}
CHAT_COLUMNS = ("messages", "conversations", "conversation")
REASONING = ("reasoning_content", "reasoning", "thinking")

# Which roles may follow: "" is the start, "call" an assistant turn that calls tools.
FOLLOWS = {
    "": ("system", "user"), "system": ("system", "user"), "user": ("assistant",), "assistant": ("user",),
    "call": ("tool",), "tool": ("tool", "assistant"),
}


def chat(messages: Any, tools: Any = None) -> Chat:
    """A Chat of messages in any of the known spellings.
    Raises RowProblem: wrong_shape, unknown_role, wrong_role_order, empty_answer."""
    turns = [_message(message) for message in turns_of(messages)]
    _check_order(turns)
    if all(turn["role"] != "assistant" for turn in turns):
        raise RowProblem("empty_answer", "no assistant turn")
    return Chat(turns, _tools(tools))


def exchange(system: Any, history: list, prompt: str, answer: str, tools: Any = None) -> Chat:
    """A Chat of a system prompt (or None), earlier [prompt, answer] pairs, a prompt and its answer."""
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answered in [*history, [prompt, answer]]:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return chat(messages, tools)


def turns_of(value: Any) -> list[dict]:
    """A list of mappings, which may be written as JSON text (as in CSV)."""
    value = from_json(value)
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        raise RowProblem("wrong_shape", f"a list of messages expected, found {shown(value)}")
    return value


def is_turns(value: Any, *keys: str) -> bool:
    """Whether a value is a list of mappings, or JSON text of one, whose first has all the keys."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return False
    try:
        first = turns_of(value)[0]
    except RowProblem:
        return False
    return all(key in first for key in keys)


def has_turns(sample: dict) -> bool:
    """Whether a record holds a conversation, so that its other columns are not what is learned."""
    return any(is_turns(sample.get(column)) for column in CHAT_COLUMNS)


def turns_in(raw: dict) -> list[dict]:
    """The conversation that a record holds. Raises RowProblem if it holds none."""
    return turns_of(next((raw[column] for column in CHAT_COLUMNS if raw.get(column) is not None), None))


def from_json(value: Any) -> Any:
    """The value that JSON text holds, or any other value as it is."""
    parsed = parse_json(value) if isinstance(value, str) else value
    if isinstance(parsed, RowProblem):
        raise RowProblem("wrong_shape", f"JSON expected, found {shown(value)}")
    return parsed


def string(raw: dict, *columns: str) -> str:
    """The first of the columns that is there. Raises RowProblem if none is, or it is no string."""
    for column in columns:
        if raw.get(column) is not None:
            return _string(raw[column], column)
    raise RowProblem("wrong_shape", f"no column {' or '.join(columns)}, only {shown(', '.join(map(str, raw)))}")


def optional(raw: dict, *columns: str) -> str | None:
    """The first of the columns that is there and not empty, or None."""
    return next((_string(raw[column], column) for column in columns if raw.get(column) not in (None, "")), None)


def shown(value: Any) -> str:
    """A value for a message: on one line, and short."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowProblem("wrong_shape", f"{name}: text expected, found {shown(value)}")
    return value


def _message(raw: dict) -> dict:
    role = raw.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RowProblem("unknown_role", shown(role))
    message = {"role": ROLES[role], "content": _content(raw.get("content"))}
    if message["role"] == "assistant":
        message |= _assistant_parts(raw)
        if not message["content"].strip() and "tool_calls" not in message:
            raise RowProblem("empty_answer")
    if message["role"] == "tool":
        message |= {key: _string(raw[key], key) for key in ("tool_call_id", "name") if raw.get(key) is not None}
    return message


def _assistant_parts(raw: dict) -> dict:
    parts = {}
    if reasoning := optional(raw, *REASONING):
        parts["reasoning_content"] = reasoning
    if calls := _tool_calls(raw):
        parts["tool_calls"] = calls
    weight = raw.get("weight")
    if weight is not None:
        if weight not in (0, 1):
            raise RowProblem("wrong_shape", f"weight: 0 or 1 expected, found {shown(weight)}")
        parts["weight"] = int(weight)
    return parts


def _content(content: Any) -> str:
    """Text, nothing, or a list of {type: text, text: …} parts."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return _string(content, "content")
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise RowProblem("wrong_shape", f"content: only text parts can be learned, found {shown(part)}")
    return "".join(_string(part.get("text"), "content") for part in content)


def _tool_calls(raw: dict) -> list[dict]:
    calls = from_json(raw.get("tool_calls") or [])
    if raw.get("function_call"):  # how OpenAI wrote a single call before there were several
        calls = [raw["function_call"]]
    if not isinstance(calls, list):
        raise RowProblem("wrong_shape", f"tool_calls: a list expected, found {shown(calls)}")
    return [_tool_call(call) for call in calls]


def _tool_call(call: Any) -> dict:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowProblem("wrong_shape", f"tool_calls: a function with a name expected, found {shown(call)}")
    arguments = from_json(function.get("arguments") or {})
    if not isinstance(arguments, dict):
        raise RowProblem("wrong_shape", f"tool_calls: arguments must be a mapping, found {shown(arguments)}")
    identity = {"id": _string(call["id"], "id")} if call.get("id") is not None else {}
    function = {"name": function["name"], "arguments": _jsonable(arguments, "tool_calls")}
    return identity | {"type": "function", "function": function}


def _tools(tools: Any) -> list[dict] | None:
    tools = from_json(tools or None)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowProblem("wrong_shape", f"tools: a list of functions expected, found {shown(tools)}")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return _jsonable(wrapped, "tools")


def _jsonable(value: Any, name: str) -> Any:
    """The value, unless it holds what JSON cannot, such as the dates and bytes of columnar files."""
    try:
        json.dumps(value)
    except (TypeError, RecursionError) as error:
        raise RowProblem("wrong_shape", f"{name}: {error}") from None
    return value


def _check_order(turns: list[dict]) -> None:
    before = ""
    for number, turn in enumerate(turns, 1):
        if turn["role"] not in FOLLOWS[before]:
            raise RowProblem("wrong_role_order", f"message {number}: {turn['role']} after {before or 'the start'}")
        before = "call" if "tool_calls" in turn else turn["role"]
