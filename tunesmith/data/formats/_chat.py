"""What all chat formats end in: messages checked and put into one shape."""

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
CALL_ROLES = ("function_call", "tool_call", "tool_calls")  # assistant turns whose text is their calls, as JSON
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
}  # a turn's flags: does yes mean that it is learned?
YES, NO = (True, 1, "true", "True", "1"), (False, 0, "false", "False", "0")


def conversation(raw: dict) -> Chat:
    """The Chat of a record that holds a conversation, which the answer that was preferred may stand beside."""
    refuse_bad(raw, "label")
    turns = turns_in(raw)
    if role_of(turns[-1]) == "user" and (column := next((c for c in CHOSEN if raw.get(c) is not None), None)):
        answer = turns_or_text(raw, column, "assistant")
        turns = turns + answer if role_of(answer[0]) == "assistant" else answer
    return chat(raw, turns)


def exchange(raw: dict, prompt: str, answer: str | dict) -> Chat:
    """The Chat of a record's history, a prompt, and its answer: text, or the keys of an assistant turn."""
    refuse_bad(raw)
    said = answer if isinstance(answer, dict) else {"content": answer}
    reasoning = optional(raw, "reasoning_content")
    said = said | ({"reasoning_content": reasoning} if reasoning else {})
    return chat(raw, [*history(raw), {"role": "user", "content": prompt}, {"role": "assistant"} | said])


def chat(raw: dict, messages: list[dict]) -> Chat:
    """A Chat of messages in any of the known spellings, behind the record's system prompt and with its tools. In which
    order roles may stand is for the model's chat template to say.
    Raises RowProblem: wrong_shape, unknown_role, wrong_role_order, empty_answer."""
    turns = _answers_joined([_message(message) for message in messages])
    if system := optional(raw, *SYSTEM):
        first = turns[0] if turns else {}
        if first.get("role") != "system" or first["content"].strip() != system.strip():  # often it stands in both
            turns.insert(0, {"role": "system", "content": system})
    _check_results(turns)
    if all(turn["role"] != "assistant" for turn in turns):
        raise RowProblem("empty_answer", "no assistant turn")
    return Chat(turns, _tools(next((raw[column] for column in TOOLS if raw.get(column)), None)))


def refuse_bad(raw: dict, *flags: str) -> None:
    """Raises RowProblem for a record that is marked as an answer not to give: KTO's, or one that was rejected. `flags`:
    columns that mean it in this format, and elsewhere may be a class."""
    for flag, bad in (("rejected", "true"), ("kto_tag", "false"), *((flag, "false") for flag in flags)):
        text = str(dict.get(raw, flag)).lower()  # not read yet: it may be something else, such as the rejected answer
        if text in ("true", "false"):
            raw.get(flag)
            if text == bad:
                raise RowProblem("marked_bad", f"{flag}: {text}")


def history(raw: dict) -> list[dict]:
    """The turns in a record's `history`: [prompt, answer] pairs, or messages."""
    value = from_json(raw.get("history") or [])
    if _are_mappings(value):
        return turns_of(raw, "history")
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise RowProblem("wrong_shape", f"history: a list of pairs expected, found {shown(value)}")
    return [{"role": role, "content": text} for pair in value for role, text in zip(("user", "assistant"), pair)]


def turns_of(raw: dict, column: str) -> list[dict]:
    """The turns in a record's column: a list of mappings or a single one, which may be written as JSON text (as in
    CSV)."""
    value = from_json(raw.get(column))
    value = [value] if isinstance(value, dict) else value
    if not _are_mappings(value):
        raise RowProblem("wrong_shape", f"{column}: a list of messages expected, found {shown(value)}")
    turns: Any = [Record(turn) for turn in value]
    if isinstance(raw, Record):
        raw.hold_turns(column, turns)
    return turns


def turns_or_text(raw: dict, column: str, role: str) -> list[dict]:
    """The turns in a record's column, or its text as one turn of the role."""
    value = raw.get(column)
    if is_turns(value, "role") or is_turns(value, "from") or isinstance(value, dict):
        return turns_of(raw, column)
    if not isinstance(value, str):
        raise RowProblem("wrong_shape", f"{column}: text or messages expected, found {shown(value)}")
    return [{"role": role, "content": value}]


def is_turns(value: Any, *keys: str) -> bool:
    """Whether a value is a list of mappings, or JSON text of one, whose first has all the keys."""
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
    """Whether a record holds a conversation, so that its other columns are not what is learned."""
    return any(is_turns(sample.get(column)) for column in CHAT_COLUMNS)


def turns_in(raw: dict) -> list[dict]:
    """The conversation that a record holds. Raises RowProblem if it holds none."""
    return turns_of(raw, next((column for column in CHAT_COLUMNS if raw.get(column) is not None), CHAT_COLUMNS[0]))


def role_of(message: dict) -> str | None:
    """A message's role in OpenAI's words; None if it is not known."""
    role = message.get("from" if message.get("role") is None else "role")
    return ROLES.get(role) if isinstance(role, str) else None


def from_json(value: Any) -> Any:
    """The value that JSON text holds, also as Python prints it, or any other value as it is."""
    if not isinstance(value, str):
        return value
    parsed = parse_json(value)
    if isinstance(parsed, RowProblem) and value.lstrip()[:1] in ("[", "{"):
        parsed = _python_literal(value.strip())
    if (parsed is None and value.strip() != "null") or isinstance(parsed, RowProblem):
        raise RowProblem("wrong_shape", f"JSON expected, found {shown(value)}")
    return parsed


def _python_literal(text: str) -> Any:
    """The list or mapping that Python printed as [{'role': …}], as tables hold it. None for any other text, and for
    what JSON cannot hold."""
    with warnings.catch_warnings(action="ignore"):  # of "\\d", which Python reads as it is
        try:
            value = ast.literal_eval(text)
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return None
    return value


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
            raw.get(key)  # which needs no flag; one that says to learn a prompt stays unread
    return message


def _assistant(raw: dict, content: Any, is_call: bool) -> dict:
    """An assistant turn. `is_call`: its content is its calls as JSON, one or a list of them."""
    calls = _tool_calls(raw)
    if is_call and content:
        found = from_json(content)
        calls += [_tool_call(call) for call in (found if isinstance(found, list) else [found])]
        content = None
    thoughts, content = _thoughts_apart(content)
    message: dict[str, Any] = {"role": "assistant", "content": _content(content)}
    if reasoning := optional(raw, *REASONING) or thoughts:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    flags = {key: raw[key] for key in LEARN if raw.get(key) is not None}
    if flags:
        learned = [_says_learn(key, value) for key, value in flags.items()]  # raises for a wrong one after a 0 too
        message["weight"] = int(all(learned))
    if not message["content"].strip() and not calls:
        raise RowProblem("empty_answer")
    return message


def _says_learn(key: str, value: Any) -> bool:
    """Whether a turn's flag says to learn it."""
    if value not in YES and value not in NO:
        raise RowProblem("wrong_shape", f"{key}: 0 or 1 expected, found {shown(value)}")
    return (value in YES) == LEARN[key]


def _thoughts_apart(content: Any) -> tuple[str, Any]:
    """The reasoning among the parts of a content, such as {type: thinking, thinking: …}, and the content without it."""
    if not isinstance(content, list):
        return "", content
    thoughts, rest = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("thinking", "reasoning"):
            thoughts.append(string(part, kind, "text"))
        else:
            rest.append(part)
    return "\n\n".join(thoughts), rest


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
    """The value, unless it holds what JSON cannot, such as the dates and bytes of columnar files."""
    try:
        json.dumps(value)
    except (TypeError, RecursionError) as error:
        raise RowProblem("wrong_shape", f"{name}: {error}") from None
    return value


def _check_results(turns: list[dict]) -> None:
    """Raises RowProblem for a tool's result without a call before it, or a call with something else behind it."""
    for number, (before, turn) in enumerate(pairwise([{"role": "the start"}, *turns]), 1):
        if turn["role"] == "tool" and before["role"] not in ("assistant", "tool"):
            raise RowProblem("wrong_role_order", f"message {number}: tool after {before['role']}")
        if turn["role"] != "tool" and "tool_calls" in before:
            raise RowProblem("wrong_role_order", f"message {number}: {turn['role']} after a tool call without result")


def _answers_joined(turns: list[dict]) -> list[dict]:
    """Neighbouring assistant turns as one, such as text and the call that follows it: a model ends its turn once."""
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
