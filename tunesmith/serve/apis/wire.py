"""What the APIs share of their requests' shapes, and how a conversation becomes the messages of the template."""

import json

from tunesmith.answer_formats.calls import object_text
from tunesmith.inference.interface import Refused
from tunesmith.serve.options import Wire

STREAMED = {200: {"content": {"text/event-stream": {}}}}  # beside JSON, for the OpenAPI document
INVALID = "invalid_json"
TEXT_PARTS = ("text", "input_text", "output_text")


class Function(Wire):
    name: str
    arguments: str | dict | None = None


class ToolCall(Wire):
    id: str | None = None
    function: Function


def text_of(content) -> str:
    """A content, string or parts, as text. Raises Refused for parts that are no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Refused("content: give text, or a list of parts", parameter="messages")
    for part in content:
        if part.get("type") not in TEXT_PARTS or not isinstance(part.get("text"), str):
            raise Refused(f"content of type {part.get('type')!r}: this server reads text only", parameter="messages")
    return "".join(part["text"] for part in content)


def tool_call(name: str, arguments: str | dict | None, identity: str | None) -> dict:
    """A call as templates want it: its arguments a mapping. A conversation continues after a call whose arguments were
    cut off or are no JSON object; the model is shown them as text under the key INVALID."""
    text = object_text(arguments)
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments)
    mapping = {INVALID: shown} if text is None else json.loads(text)
    return {"id": identity or "", "type": "function", "function": {"name": name, "arguments": mapping}}


def thinking_of(effort: str | None) -> dict:
    """How much to reason, as the variables that templates know: `enable_thinking` or `reasoning_effort`."""
    if effort is None:
        return {}
    return {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}


def tool(name, description, parameters) -> dict:
    """A tool as templates want it."""
    function = {
        "name": name,
        "description": description or "",
        "parameters": parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": function}


def frame(data: dict | str, event: str | None = None) -> str:
    """One server-sent event. ASCII, so that text that is no valid Unicode can be sent as well."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"
