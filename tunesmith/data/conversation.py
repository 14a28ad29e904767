"""Fits a conversation to a model's chat template, and finds the parts that the template drops.

Templates differ in what they accept. One refuses a system turn, another two user turns in a row, a third silently drops
the second of two tool calls. This module knows no model family. It builds a probe: a conversation of the same shape in
which every text is a unique marker. It renders the probe in every form that may help, and looks for the markers in the
output. A part whose marker is missing was dropped.
"""

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

from tunesmith.data import reasoning
from tunesmith.data.rows import Chat, RowProblem
from tunesmith.data.tokenizer import Tokenizer

CALL_ID_LENGTH = 9  # required by Mistral's templates; other templates accept any length


class Part(NamedTuple):
    """A part of a conversation that the template drops. `message` is the index of its message, None for the tools."""

    message: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.message is None else f"{self.what} of message {self.message + 1}"


class Accepted(NamedTuple):
    """Messages that the template accepts, the changes made (keys of `rows.REASONS`), and the parts it still drops."""

    messages: list[dict]
    changes: list[str]
    unwritten: list[Part]


def accepted(tokenizer: Tokenizer, chat: Chat) -> Accepted:
    """Returns the form of a conversation in which the template drops the fewest parts, with the fewest changes."""
    messages, changes = _reasoning_placed(tokenizer, chat.messages)
    chosen, unwritten = _decide(tokenizer, *_probe(messages, chat.tools))
    for form in chosen:
        messages = FORMS[form].apply(messages)
        changes += [FORMS[form].reason] if FORMS[form].reason else []
    return Accepted(messages, changes, list(unwritten))


def generation_prompt(tokenizer: Tokenizer, chat: Chat, **variables: Any) -> str:
    """Returns the prompt for the next answer in a conversation, rendered as in training. Raises RowProblem if the
    template refuses the conversation or drops a part of it, because the model would then answer something else."""
    messages, _, unwritten = accepted(tokenizer, chat)
    if unwritten:
        raise RowProblem("part_unwritten", f"it does not write {', '.join(map(str, unwritten))}")
    return tokenizer.render(messages, chat.tools, add_generation_prompt=True, **variables)


def _reasoning_placed(tokenizer: Tokenizer, messages: list[dict]) -> tuple[list[dict], list[str]]:
    """Moves reasoning to where the template expects it: its own field, or the answer's text if the template has no
    place for reasoning. Returns the messages and the changes."""
    has_field, placed, changes = reasoning.has_place(tokenizer), [], []
    for message in messages:
        if message["role"] == "assistant":
            thought, content = message.get("reasoning_content"), message.get("content") or ""
            if thought and not has_field:
                message = {**message, "content": reasoning.joined(thought, content)}
                del message["reasoning_content"]
                changes = ["reasoning_in_answer"]
            elif (
                has_field and not thought and (cut := reasoning.split(content)) and (cut[1] or "tool_calls" in message)
            ):
                message = {**message, "reasoning_content": cut[0], "content": cut[1]}
        placed.append(message)
    return placed, changes


# --- The forms to try. Each takes messages and returns changed messages, or equal ones where it does not apply.


def _ids_of_length(messages: list[dict]) -> list[dict]:
    """Gives calls and results ids of nine characters. A result belongs to the call with its id, else the next call."""
    names: dict[str, str] = {}
    changed, waiting = [], []
    for message in messages:
        if calls := message.get("tool_calls"):
            ids = [f"call{len(names) + n:05}" for n in range(len(calls))]
            names |= {call.get("id") or new: new for call, new in zip(calls, ids)}
            waiting = ids
            message = {**message, "tool_calls": [{**call, "id": new} for call, new in zip(calls, ids)]}
        elif message["role"] == "tool":
            new = names.get(message.get("tool_call_id")) or (waiting[0] if waiting else None)
            waiting = [one for one in waiting if one != new]
            message = {**message, "tool_call_id": new} if new else message
        changed.append(message)
    return changed


def _arguments_as_text(messages: list[dict]) -> list[dict]:
    def written(call: dict) -> dict:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": text}}

    return [
        {**m, "tool_calls": [written(call) for call in m["tool_calls"]]} if m.get("tool_calls") else m for m in messages
    ]


def _no_content_beside_calls(messages: list[dict]) -> list[dict]:
    """Replaces empty content beside tool calls by None, which some templates require."""
    return [{**m, "content": None} if m.get("tool_calls") and not m["content"] else m for m in messages]


def _systems_joined(messages: list[dict]) -> list[dict]:
    """Joins the system turns at the beginning of a conversation into one."""
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return [_joined(messages[:count]), *messages[count:]] if count > 1 else messages


def _later_systems_moved(messages: list[dict]) -> list[dict]:
    """Moves system turns after the first message into the next user turn, or makes them a user turn if none follows."""
    return _into_user_turns(messages, lambda i: i > 0)


def _systems_moved(messages: list[dict]) -> list[dict]:
    return _into_user_turns(messages, lambda i: True)


def _into_user_turns(messages: list[dict], moves: Callable[[int], bool]) -> list[dict]:
    changed, waiting = [], []
    for i, message in enumerate(messages):
        if message["role"] == "system" and moves(i):
            waiting.append(message)
        elif waiting and message["role"] == "user":
            changed.append(_joined([*waiting, message]))
            waiting = []
        elif waiting and message["role"] == "assistant":  # no user turn in between
            changed += [{**_joined(waiting), "role": "user"}, message]
            waiting = []
        else:
            changed.append(message)
    return [*changed, {**_joined(waiting), "role": "user"}] if waiting else changed


def _neighbours_joined(messages: list[dict]) -> list[dict]:
    """Joins consecutive user turns into one."""
    changed: list[dict] = []
    for message in messages:
        if changed and message["role"] == changed[-1]["role"] == "user":
            changed[-1] = _joined([changed[-1], message])
        else:
            changed.append(message)
    return changed


def _greeting_dropped(messages: list[dict]) -> list[dict]:
    """Drops the assistant turns before the first question."""
    first = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "assistant")), 0)
    return [m for m in messages[:first] if m["role"] == "system"] + messages[first:]


def _calls_split(messages: list[dict]) -> list[dict]:
    """Splits parallel calls into turns of one call, each followed by its results, if every call has a result."""
    changed, at = [], 0
    while at < len(messages):
        message, calls = messages[at], messages[at].get("tool_calls") or []
        end = next((i for i in range(at + 1, len(messages)) if messages[i]["role"] != "tool"), len(messages))
        results = _results_of(calls, messages[at + 1 : end])
        if len(calls) > 1 and all(results):
            for number, call in enumerate(calls):
                rest = (
                    message
                    if number == 0
                    else {key: value for key, value in message.items() if key in ("role", "weight")} | {"content": ""}
                )
                changed += [{**rest, "tool_calls": [call]}, *results[number]]
            at = end
        else:
            changed.append(message)
            at += 1
    return changed


def _results_of(calls: list[dict], results: list[dict]) -> list[list[dict]]:
    """Returns the results of each call, matched by id or, without ids, by order."""
    by_call: list[list[dict]] = [[] for _ in calls]
    numbers = {call["id"]: number for number, call in enumerate(calls) if call.get("id")}
    for order, result in enumerate(results):
        number = numbers.get(result.get("tool_call_id"), order if order < len(calls) else None)
        if number is not None:
            by_call[number].append(result)
    return by_call


def _joined(messages: list[dict]) -> dict:
    """Joins turns into one that has the role of the last and the content of all."""
    return {**messages[-1], "content": "\n\n".join(m["content"] for m in messages if m["content"])}


class Form(NamedTuple):
    """A change to a conversation. `reason` is a key of `rows.REASONS`, or None if the model reads the same text."""

    apply: Callable[[list[dict]], list[dict]]
    reason: str | None = None


FORMS = (  # applied in this order
    Form(_systems_joined, "systems_joined"),
    Form(_later_systems_moved, "system_moved"),
    Form(_systems_moved, "system_merged"),
    Form(_neighbours_joined, "turns_joined"),
    Form(_greeting_dropped, "greeting_dropped"),
    Form(_calls_split, "calls_split"),
    Form(_ids_of_length),
    Form(_no_content_beside_calls),
    Form(_arguments_as_text),
)


@lru_cache(maxsize=4096)
def _decide(tokenizer: Tokenizer, messages: str, tools: str) -> tuple[tuple[int, ...], tuple[Part, ...]]:
    """Returns the forms to apply to conversations of a probe's shape, and the parts that the template still drops."""
    probe, probe_tools = json.loads(messages), json.loads(tools)
    best: tuple[tuple[int, ...], tuple[Part, ...]] = ((), ())
    fewest: int | None = None
    for chosen, changed in _candidates(probe):
        unwritten = _unwritten(tokenizer, changed, probe_tools)
        if unwritten is not None and (fewest is None or len(unwritten) < fewest):
            best, fewest = (chosen, tuple(unwritten)), len(unwritten)
            if all(part.message is None for part in unwritten):  # no form helps with dropped tools
                break
    return best


def _candidates(messages: list[dict]) -> Iterator[tuple[tuple[int, ...], list[dict]]]:
    """Yields sets of applicable forms (their indices) with the changed messages, fewest changes first."""
    usable, changed = [], messages
    for i, form in enumerate(FORMS):  # a form may apply only after another: moving a system turn may join user turns
        before, changed = changed, form.apply(changed)
        usable += [i] if changed != before or form.apply(messages) != messages else []
    sets = [chosen for size in range(len(usable) + 1) for chosen in combinations(usable, size)]
    for chosen in sorted(sets, key=lambda chosen: sum(FORMS[i].reason is not None for i in chosen)):
        changed = messages
        for number in chosen:
            changed = FORMS[number].apply(changed)
        yield chosen, changed


# --- Probes: conversations of the same shape with a marker in place of every text.


def _probe(messages: list[dict], tools: list[dict] | None) -> tuple[str, str]:
    """Returns messages and tools of the same shape as JSON, with a unique marker in place of each text."""
    count = 0

    def marked(value: Any) -> Any:
        nonlocal count
        if isinstance(value, dict):
            return {marked(key): marked(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [marked(inner) for inner in value]
        if isinstance(value, bool) or value is None or value == "":
            return value
        count += 1
        if isinstance(value, str):
            return f"Tunesmith{count:05}x" if value.strip() else value
        return 7_000_000_000 + count

    def call(one: dict, number: int) -> dict:
        function = {"name": marked(one["function"]["name"]), "arguments": marked(one["function"]["arguments"])}
        return _with_id({"type": "function", "function": function}, "id", one.get("id"), number)

    probes = []
    for number, message in enumerate(messages):
        probe = {"role": message["role"], "content": marked(message["content"])}
        if message.get("reasoning_content"):
            probe["reasoning_content"] = "Why."
        if message.get("tool_calls"):
            probe["tool_calls"] = [call(one, 100 * number + i) for i, one in enumerate(message["tool_calls"])]
        if message["role"] == "tool":
            probe = _with_id(probe, "tool_call_id", message.get("tool_call_id"), number)
            probe |= {"name": "probe"} if message.get("name") else {}
        probes.append(probe | {key: message[key] for key in ("weight",) if key in message})
    marked_tools = [
        {**tool, "function": _marked_tool(tool["function"], marked)} if "function" in tool else tool
        for tool in tools or []
    ]
    return json.dumps(_linked(probes, messages)), json.dumps(marked_tools)


def _with_id(probe: dict, key: str, original: str | None, number: int) -> dict:
    """Adds an id of the same form as the given one, because templates check for nine letters and digits."""
    if original is None:
        return probe
    fits = len(original) == CALL_ID_LENGTH and original.isalnum()
    return probe | {key: f"call{number:05}" if fits else f"call_{number:020}"}


def _linked(probes: list[dict], messages: list[dict]) -> list[dict]:
    """Gives each result's probe the id of its call's probe."""
    ids: dict[str, str] = {}
    for probe, message in zip(probes, messages):
        for probe_call, call in zip(probe.get("tool_calls", ()), message.get("tool_calls") or ()):
            if call.get("id"):
                ids[call["id"]] = probe_call["id"]
        if message.get("tool_call_id") in ids:
            probe["tool_call_id"] = ids[message["tool_call_id"]]
    return probes


def _marked_tool(function: dict, marked: Callable) -> dict:
    """Returns a function definition with a marker as its name. Parameters are kept as an empty schema."""
    probe = {"name": marked(function.get("name", ""))}
    if "description" in function:
        probe["description"] = "A probe."
    if "parameters" in function:
        probe["parameters"] = {"type": "object", "properties": {}, "required": []}
    return probe


def _unwritten(tokenizer: Tokenizer, messages: list[dict], tools: list[dict]) -> list[Part] | None:
    """Returns the parts of a probe that the template drops, or None if it refuses the conversation."""
    ends_with_question = messages[-1]["role"] != "assistant"
    try:
        text = tokenizer.render(messages, tools or None, add_generation_prompt=ends_with_question)
    except RowProblem:
        return None
    lost = []
    for number, message in enumerate(messages):
        markers = (message["content"] or "").split("\n\n")  # joined turns have one marker each
        lost += [Part(number, f"the {message['role']} text") for marker in markers if marker.strip() not in text]
        lost += [
            Part(number, "a tool call")
            for call in message.get("tool_calls", ())
            if not all(marker in text for marker in leaves(call["function"]))
        ]
    if not all(tool.get("function", {}).get("name", "") in text for tool in tools):
        lost.append(Part(None, "the tools"))
    return lost


def leaves(value: Any) -> Iterator[str]:
    """Yields every key and value inside a value: strings unchanged, numbers as JSON writes them. Text that is a JSON
    object is parsed."""
    if isinstance(value, str):
        try:
            inner = json.loads(value) if value.startswith("{") else None
        except ValueError:
            inner = None
        yield from leaves(inner) if isinstance(inner, dict) else [value]
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from () if key in ("name", "arguments") and value.keys() == {"name", "arguments"} else [key]
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif value is not None and not isinstance(value, bool):
        yield json.dumps(value)
