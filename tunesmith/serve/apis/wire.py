"""Shared by the APIs: parts of request models, and the conversion of messages and tools for the chat template."""

import json

from tunesmith.answer_formats.calls import object_text
from tunesmith.inference.interface import Refused
from tunesmith.serve.options import Wire

STREAMED = {200: {"content": {"text/event-stream": {}}}}  # for the OpenAPI document, beside JSON
INVALID = "invalid_json"
TEXT_PARTS = ("text", "input_text", "output_text")


class Function(Wire):
    name: str
    arguments: str | dict | None = None


class ToolCall(Wire):
    id: str | None = None
    function: Function


def text_of(content) -> str:
    """Returns content, a string or a list of parts, as text. Raises Refused for parts that are not text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Refused("content: give text, or a list of parts", parameter="messages")
    for part in content:
        if part.get("type") not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise Refused(f"content of type {part.get('type')!r}: this server reads text only", parameter="messages")
    return "".join(part["text"] for part in content)


def tool_call(name: str, arguments: str | dict | None, identity: str | None) -> dict:
    """Returns a call in the form of templates, with a mapping as arguments. Arguments that are cut off or not a JSON
    object are passed to the model as text under the key INVALID, so that the conversation can continue."""
    text = object_text(arguments)
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments)
    mapping = {INVALID: shown} if text is None else json.loads(text)
    return {"id": identity or "", "type": "function", "function": {"name": name, "arguments": mapping}}


def thinking_of(effort: str | None) -> dict:
    """Returns the template variable for a reasoning effort: `enable_thinking` or `reasoning_effort`."""
    if effort is None:
        return {}
    return {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}


def tool(name, description, parameters) -> dict:
    """Returns a tool in the form of templates."""
    function = {
        "name": name,
        "description": description or "",
        "parameters": parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def frame(data: dict | str, event: str | None = None) -> str:
    """Returns one server-sent event. It is ASCII, so that lone surrogates can be sent too."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"
