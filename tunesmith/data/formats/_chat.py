"""Shared by all chat formats: checks messages and converts them to one shape."""

import ast
import json
import warnings
from itertools import pairwise
from typing import Any

from tunesmith.data.containers import parse_json
from tunesmith.data.records import Record
from tunesmith.data.rows import Chat, RowProblem

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool_calls": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "tool_result": "tool",
    "ipython": "tool",
}
CALL_ROLES = ("function_call", "tool_call", "tool_calls")  # assistant turns whose text is tool calls as JSON
CHAT_COLUMNS = ("messages", "conversations", "conversation")
SYSTEM = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")
REASONING = ("reasoning_content", "reasoning", "thinking")
CHOSEN = ("chosen", "completion", "response")  # the answer to a conversation that ends with the user
LEARN = {
    "weight": True,
    "train": True,
    "training": True,
    "train_on_turn": True,
    "learn": True,
    "loss": True,
    "loss_weight": True,
    "loss_scale": True,
    "masked": False,
}  # a turn's flags; True where "yes" means that the turn is learned
YES, NO = (True, 1, "true", "True", "1"), (False, 0, "false", "False", "0")


def conversation(raw: dict) -> Chat:
    """Returns the Chat of a record with a conversation. Its last answer may be in a column of its own, such as
    `chosen`."""
    refuse_bad(raw, "label")
    turns = turns_in(raw)
    if role_of(turns[-1]) == "user" and (column := next((c for c in CHOSEN if raw.get(c) is not None), None)):
        answer = turns_or_text(raw, column, "assistant")
        turns = turns + answer if role_of(answer[0]) == "assistant" else answer
    return chat(raw, turns)


def exchange(raw: dict, prompt: str, answer: str | dict) -> Chat:
    """Returns the Chat of a record's history, a prompt and an answer: text, or the keys of an assistant turn."""
    refuse_bad(raw)
    turn = {"role": "assistant"} | (answer if isinstance(answer, dict) else {"content": answer})
    reasoning = optional(raw, "reasoning_content")
    turn |= {"reasoning_content": reasoning} if reasoning else {}
    return chat(raw, [*history(raw), {"role": "user", "content": prompt}, turn])


def chat(raw: dict, messages: list[dict]) -> Chat:
    """Returns a Chat of messages in any known spelling, with the record's system prompt and tools. The order of roles
    is not checked here beyond tool results, since it depends on the model's chat template. Raises RowProblem:
    wrong_shape, unknown_role, wrong_role_order, empty_answer."""
    turns = _answers_joined([_message(message) for message in messages])
    if system := optional(raw, *SYSTEM):
        first = turns[0] if turns else {}
        if (
            first.get("role") != "system" or first["content"].strip() != system.strip()
        ):  # many records have it in both places
            turns.insert(0, {"role": "system", "content": system})
    _check_results(turns)
    if all(turn["role"] != "assistant" for turn in turns):
        raise RowProblem("empty_answer", "no assistant turn")
    return Chat(turns, _tools(next((raw[column] for column in TOOLS if raw.get(column)), None)))


def refuse_bad(raw: dict, *flags: str) -> None:
    """Raises RowProblem for a record whose answer is marked as undesirable, as in KTO or a rejected answer. `flags` are
    further columns that mark it in this format; in other formats they may be a class label."""
    for flag, bad in (("rejected", "true"), ("kto_tag", "false"), *((flag, "false") for flag in flags)):
        text = str(
            dict.get(raw, flag)
        ).lower()  # dict.get, as it may be another value, such as the rejected answer, and is then unread
        if text in ("true", "false"):
            raw.get(flag)
            if text == bad:
                raise RowProblem("marked_bad", f"{flag}: {text}")


def history(raw: dict) -> list[dict]:
    """Returns the turns in a record's `history`: [prompt, answer] pairs, or messages."""
    value = from_json(raw.get("history") or [])
    if _are_mappings(value):
        return turns_of(raw, "history")
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise RowProblem("wrong_shape", f"history: a list of pairs expected, found {shown(value)}")
    return [{"role": role, "content": text} for pair in value for role, text in zip(("user", "assistant"), pair)]


def turns_of(raw: dict, column: str) -> list[dict]:
    """Returns the turns in a record's column: a mapping or a list of them, possibly as JSON text (as in CSV)."""
    value = from_json(raw.get(column))
    value = [value] if isinstance(value, dict) else value
    if not _are_mappings(value):
        raise RowProblem("wrong_shape", f"{column}: a list of messages expected, found {shown(value)}")
    turns: Any = [Record(turn) for turn in value]
    if isinstance(raw, Record):
        raw.hold_turns(column, turns)
    return turns


def turns_or_text(raw: dict, column: str, role: str) -> list[dict]:
    """Returns the turns in a record's column, or its text as one turn of the role."""
    value = raw.get(column)
    if is_turns(value, "role") or is_turns(value, "from") or isinstance(value, dict):
        return turns_of(raw, column)
    if not isinstance(value, str):
        raise RowProblem("wrong_shape", f"{column}: text or messages expected, found {shown(value)}")
    return [{"role": role, "content": value}]


def is_turns(value: Any, *keys: str) -> bool:
    """Whether a value is a list of mappings, or JSON text of such a list, and its first item has all the keys."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return False
    try:
        value = from_json(value)
    except RowProblem:
        return False
    return _are_mappings(value) and all(key in value[0] for key in keys)


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def has_turns(sample: dict) -> bool:
    """Whether a record contains a conversation, which is then learned instead of its other columns."""
    return any(is_turns(sample.get(column)) for column in CHAT_COLUMNS)


def turns_in(raw: dict) -> list[dict]:
    """Returns the turns of a record's conversation. Raises RowProblem if it has none."""
    return turns_of(raw, next((column for column in CHAT_COLUMNS if raw.get(column) is not None), CHAT_COLUMNS[0]))


def role_of(message: dict) -> str | None:
    """Returns a message's role in OpenAI's terms, or None if the role is unknown."""
    role = message.get("from" if message.get("role") is None else "role")
    return ROLES.get(role) if isinstance(role, str) else None


def from_json(value: Any) -> Any:
    """Parses text as JSON, or as a Python literal. Any other value is returned unchanged."""
    if not isinstance(value, str):
        return value
    parsed = parse_json(value)
    if isinstance(parsed, RowProblem) and value.lstrip()[:1] in ("[", "{"):
        parsed = _python_literal(value.strip())
    if (parsed is None and value.strip() != "null") or isinstance(parsed, RowProblem):
        raise RowProblem("wrong_shape", f"JSON expected, found {shown(value)}")
    return parsed


def _python_literal(text: str) -> Any:
    """Parses a list or mapping in Python's notation, [{'role': …}], which tables often contain. Returns None for other
    text, and for values that JSON cannot represent."""
    with warnings.catch_warnings(action="ignore"):  # invalid escapes such as "\\d", which Python keeps unchanged
        try:
            value = ast.literal_eval(text)
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None
    return value


def string(raw: dict, *columns: str) -> str:
    """Returns the first of the columns that has a value. Raises RowProblem if none has, or if it is not a string."""
    for column in columns:
        if raw.get(column) is not None:
            return _string(raw[column], column)
    raise RowProblem("wrong_shape", f"no column {' or '.join(columns)}, only {shown(', '.join(map(str, raw)))}")


def optional(raw: dict, *columns: str) -> str | None:
    """Returns the first of the columns that is not empty, or None."""
    return next((_string(raw[column], column) for column in columns if raw.get(column) not in (None, "")), None)


def shown(value: Any) -> str:
    """Formats a value for a message: on one line, and short."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowProblem("wrong_shape", f"{name}: text expected, found {shown(value)}")
    return value


def _message(raw: dict) -> dict:
    key = next((key for key in ("role", "from") if raw.get(key) is not None), "role")
    role = role_of(raw)
    if role is None:
        raise RowProblem("unknown_role", shown(raw.get(key)))
    content = raw.get(next((key for key in ("content", "value") if raw.get(key) is not None), "content"))
    if role == "assistant":
        return _assistant(raw, content, raw[key] in CALL_ROLES)
    message = {"role": role, "content": _content(content)}
    if role == "tool":
        message |= {key: _string(raw[key], key) for key in ("tool_call_id", "name") if raw.get(key) is not None}
    for key in LEARN.keys() & raw.keys():
        if _says_learn(key, dict.get(raw, key)) is False:
            raw.get(key)  # marks the key as read: the turn is not learned anyway. A flag to learn it stays unread
    return message


def _assistant(raw: dict, content: Any, is_call: bool) -> dict:
    """Converts an assistant turn. With `is_call`, the content is one tool call, or a list of them, as JSON."""
    calls = _tool_calls(raw)
    if is_call and content:
        parsed = from_json(content)
        calls += [_tool_call(call) for call in (parsed if isinstance(parsed, list) else [parsed])]
        content = None
    thoughts, content = _thoughts_apart(content)
    message: dict[str, Any] = {"role": "assistant", "content": _content(content)}
    if reasoning := optional(raw, *REASONING) or thoughts:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    flags = {key: raw[key] for key in LEARN if raw.get(key) is not None}
    if flags:
        learned = [_says_learn(key, value) for key, value in flags.items()]  # a list, so that every flag is checked
        message["weight"] = int(all(learned))
    if not message["content"].strip() and not calls:
        raise RowProblem("empty_answer")
    return message


def _says_learn(key: str, value: Any) -> bool:
    """Whether a turn's flag selects it for learning."""
    if value not in YES and value not in NO:
        raise RowProblem("wrong_shape", f"{key}: 0 or 1 expected, found {shown(value)}")
    return (value in YES) == LEARN[key]


def _thoughts_apart(content: Any) -> tuple[str, Any]:
    """Splits content into the text of its reasoning parts, such as {type: thinking, thinking: …}, and the other
    parts."""
    if not isinstance(content, list):
        return "", content
    thoughts, rest = [], []
    for part in content:
        type_ = part.get("type") if isinstance(part, dict) else None
        if type_ in ("thinking", "reasoning"):
            thoughts.append(string(part, type_, "text"))
        else:
            rest.append(part)
    return "\n\n".join(thoughts), rest


def _content(content: Any) -> str:
    """Returns the text of content: a string, None, or a list of {type: text, text: …} parts."""
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
    if raw.get("function_call"):  # OpenAI's older form of a single call
        calls = [raw["function_call"]]
    if not isinstance(calls, list):
        raise RowProblem("wrong_shape", f"tool_calls: a list expected, found {shown(calls)}")
    return [_tool_call(call) for call in calls]


def _tool_call(call: Any) -> dict:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowProblem("wrong_shape", f"tool_calls: a function with a name expected, found {shown(call)}")
    arguments = from_json(function.get("arguments") or function.get("parameters") or {})
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
    """Returns the value. Raises RowProblem if JSON cannot represent it, such as dates and bytes of columnar files."""
    try:
        json.dumps(value)
    except (TypeError, RecursionError) as error:
        raise RowProblem("wrong_shape", f"{name}: {error}") from None
    return value


def _check_results(turns: list[dict]) -> None:
    """Raises RowProblem for a tool result without a call before it, or a call without a result after it."""
    for number, (before, turn) in enumerate(pairwise([{"role": "the start"}, *turns]), 1):
        if turn["role"] == "tool" and before["role"] not in ("assistant", "tool"):
            raise RowProblem("wrong_role_order", f"message {number}: tool after {before['role']}")
        if turn["role"] != "tool" and "tool_calls" in before:
            raise RowProblem("wrong_role_order", f"message {number}: {turn['role']} after a tool call without result")


def _answers_joined(turns: list[dict]) -> list[dict]:
    """Joins consecutive assistant turns, such as text and the tool call after it, since a model ends its turn once."""
    joined: list[dict] = []
    for turn in turns:
        before = joined[-1] if joined else {}
        same = before.get("role") == turn["role"] == "assistant" and before.get("weight", 1) == turn.get("weight", 1)
        if same and not ("tool_calls" in before and turn["content"]):
            texts = {
                key: "\n\n".join(filter(None, (before.get(key), turn.get(key))))
                for key in ("content", "reasoning_content")
            }
            calls = [*before.get("tool_calls", ()), *turn.get("tool_calls", ())]
            joined[-1] = {**before, "content": texts["content"]}
            joined[-1] |= {"reasoning_content": texts["reasoning_content"]} if texts["reasoning_content"] else {}
            joined[-1] |= {"tool_calls": calls} if calls else {}
        else:
            joined.append(turn)
    return joined
