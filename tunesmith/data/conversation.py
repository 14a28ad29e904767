"""A conversation in the form that a model's chat template can write, and the parts that no form of it keeps.

Templates differ in what they take. One refuses a system turn, another two user turns in a row, a third writes only one
of two tool calls, without a word. Nothing here knows a model family: a probe of the same shape, in which every text is
a marker, is rendered in every form that may help. A part is written if its marker is.
"""

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

from tunesmith.data import reasoning
from tunesmith.data.rows import Chat, RowProblem
from tunesmith.data.tokenizer import Tokenizer

CALL_ID_LENGTH = 9  # what Mistral's templates demand; others take any


class Part(NamedTuple):
    """A part that the template does not write: the number of its message, None for the tools, and what it is."""

    message: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.message is None else f"{self.what} of message {self.message + 1}"


class Accepted(NamedTuple):
    """Messages as the template takes them, keys of `rows.REASONS` for what was changed, and what is still lost."""

    messages: list[dict]
    changes: list[str]
    unwritten: list[Part]


def accepted(tokenizer: Tokenizer, chat: Chat) -> Accepted:
    """The form of a conversation in which the template writes the most of it, changed as little as possible."""
    messages, changes = _reasoning_placed(tokenizer, chat.messages)
    chosen, unwritten = _decide(tokenizer, *_probe(messages, chat.tools))
    for form in chosen:
        messages = FORMS[form].apply(messages)
        changes += [FORMS[form].reason] if FORMS[form].reason else []
    return Accepted(messages, changes, list(unwritten))


def generation_prompt(tokenizer: Tokenizer, chat: Chat, **variables: Any) -> str:
    """The text that an answer to a conversation stands behind, as training saw it. Raises RowProblem if the template
    refuses the conversation or does not write a part of it: the answer would be to something else."""
    messages, _, unwritten = accepted(tokenizer, chat)
    if unwritten:
        raise RowProblem("part_unwritten", f"it does not write {', '.join(map(str, unwritten))}")
    return tokenizer.render(messages, chat.tools, add_generation_prompt=True, **variables)


def _reasoning_placed(tokenizer: Tokenizer, messages: list[dict]) -> tuple[list[dict], list[str]]:
    """Reasoning where the template looks for it: a field of its own, or in the answer's text if it has no place."""
    own, placed, changes = reasoning.has_place(tokenizer), [], []
    for message in messages:
        if message["role"] == "assistant":
            thought, content = message.get("reasoning_content"), message.get("content") or ""
            if thought and not own:
                message = {**message, "content": reasoning.joined(thought, content)}
                del message["reasoning_content"]
                changes = ["reasoning_in_answer"]
            elif own and not thought and (found := reasoning.split(content)) and (found[1] or "tool_calls" in message):
                message = {**message, "reasoning_content": found[0], "content": found[1]}
        placed.append(message)
    return placed, changes


# --- The forms that are tried. Each takes messages and returns them changed, or as they are where it does not apply.


def _ids_of_length(messages: list[dict]) -> list[dict]:
    """Calls and results with ids of nine characters; a result belongs to the call of its id, or the next one."""
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
    """Calls with a content of none instead of an empty one, as some templates ask for it."""
    return [{**m, "content": None} if m.get("tool_calls") and not m["content"] else m for m in messages]


def _systems_joined(messages: list[dict]) -> list[dict]:
    """The system turns that a conversation begins with as one."""
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return [_joined(messages[:count]), *messages[count:]] if count > 1 else messages


def _later_systems_moved(messages: list[dict]) -> list[dict]:
    """System turns behind the first put in front of the next user turn, or made one where none follows."""
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
    """User turns that follow each other as one."""
    changed: list[dict] = []
    for message in messages:
        if changed and message["role"] == changed[-1]["role"] == "user":
            changed[-1] = _joined([changed[-1], message])
        else:
            changed.append(message)
    return changed


def _greeting_dropped(messages: list[dict]) -> list[dict]:
    """Without the assistant turns that stand before the first question."""
    first = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "assistant")), 0)
    return [m for m in messages[:first] if m["role"] == "system"] + messages[first:]


def _calls_split(messages: list[dict]) -> list[dict]:
    """Parallel calls one after the other, each followed by its own results, where every call has one."""
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
    """The results of each call: those with its id or, without ids, in the same order."""
    found: list[list[dict]] = [[] for _ in calls]
    numbers = {call["id"]: number for number, call in enumerate(calls) if call.get("id")}
    for order, result in enumerate(results):
        number = numbers.get(result.get("tool_call_id"), order if order < len(calls) else None)
        if number is not None:
            found[number].append(result)
    return found


def _joined(messages: list[dict]) -> dict:
    """Turns as one: of the last one's kind, with the content of all."""
    return {**messages[-1], "content": "\n\n".join(m["content"] for m in messages if m["content"])}


class Form(NamedTuple):
    """A way to write a conversation; `reason`, a key of `rows.REASONS`, where it changes what the model reads."""

    apply: Callable[[list[dict]], list[dict]]
    reason: str | None = None


FORMS = (  # in the order in which they are applied
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
    """The forms to apply to conversations of a probe's shape, and what they leave unwritten."""
    probe, probe_tools = json.loads(messages), json.loads(tools)
    best: tuple[tuple[int, ...], tuple[Part, ...]] = ((), ())
    fewest: int | None = None
    for chosen, changed in _candidates(probe):
        unwritten = _unwritten(tokenizer, changed, probe_tools)
        if unwritten is not None and (fewest is None or len(unwritten) < fewest):
            best, fewest = (chosen, tuple(unwritten)), len(unwritten)
            if all(part.message is None for part in unwritten):  # no form brings tools back
                break
    return best


def _candidates(messages: list[dict]) -> Iterator[tuple[tuple[int, ...], list[dict]]]:
    """Sets of forms that apply, as numbers, with the messages in them: those that change the least first."""
    usable, changed = [], messages
    for i, form in enumerate(FORMS):  # one may apply only after another, as user turns meet when a system turn moves
        before, changed = changed, form.apply(changed)
        usable += [i] if changed != before or form.apply(messages) != messages else []
    sets = [chosen for size in range(len(usable) + 1) for chosen in combinations(usable, size)]
    for chosen in sorted(sets, key=lambda chosen: sum(FORMS[i].reason is not None for i in chosen)):
        changed = messages
        for number in chosen:
            changed = FORMS[number].apply(changed)
        yield chosen, changed


# --- Probes: the same shape with a marker for every text.


def _probe(messages: list[dict], tools: list[dict] | None) -> tuple[str, str]:
    """Messages and tools of the same shape as JSON, each text a marker of its own."""
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

    found = []
    for number, message in enumerate(messages):
        probe = {"role": message["role"], "content": marked(message["content"])}
        if message.get("reasoning_content"):
            probe["reasoning_content"] = "Why."
        if message.get("tool_calls"):
            probe["tool_calls"] = [call(one, 100 * number + i) for i, one in enumerate(message["tool_calls"])]
        if message["role"] == "tool":
            probe = _with_id(probe, "tool_call_id", message.get("tool_call_id"), number)
            probe |= {"name": "probe"} if message.get("name") else {}
        found.append(probe | {key: message[key] for key in ("weight",) if key in message})
    listed = [
        {**tool, "function": _marked_tool(tool["function"], marked)} if "function" in tool else tool
        for tool in tools or []
    ]
    return json.dumps(_linked(found, messages)), json.dumps(listed)


def _with_id(probe: dict, key: str, given: str | None, number: int) -> dict:
    """Ids stay as templates check them: nine letters and digits, or something else."""
    if given is None:
        return probe
    fits = len(given) == CALL_ID_LENGTH and given.isalnum()
    return probe | {key: f"call{number:05}" if fits else f"call_{number:020}"}


def _linked(probes: list[dict], messages: list[dict]) -> list[dict]:
    """Results with the ids of the probes of their calls."""
    ids: dict[str, str] = {}
    for probe, message in zip(probes, messages):
        for made, given in zip(probe.get("tool_calls", ()), message.get("tool_calls") or ()):
            if given.get("id"):
                ids[given["id"]] = made["id"]
        if message.get("tool_call_id") in ids:
            probe["tool_call_id"] = ids[message["tool_call_id"]]
    return probes


def _marked_tool(function: dict, marked: Callable) -> dict:
    """A function's description with a marker for its name; of its parameters no more than that they are there."""
    probe = {"name": marked(function.get("name", ""))}
    if "description" in function:
        probe["description"] = "A probe."
    if "parameters" in function:
        probe["parameters"] = {"type": "object", "properties": {}, "required": []}
    return probe


def _unwritten(tokenizer: Tokenizer, messages: list[dict], tools: list[dict]) -> list[Part] | None:
    """The parts of a probe that the template does not write; None if it refuses the conversation."""
    ends_with_question = messages[-1]["role"] != "assistant"
    try:
        text = tokenizer.render(messages, tools or None, add_generation_prompt=ends_with_question)
    except RowProblem:
        return None
    lost = []
    for number, message in enumerate(messages):
        markers = (message["content"] or "").split("\n\n")  # of turns that were joined, each its own
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
    """Every key and value within a value: strings as they are, numbers as JSON writes them. A JSON object given as text
    is looked into."""
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
