"""Tries a server as a client would: a question, and a tool call, by each API."""

import http.client
import json
import urllib.error
import urllib.request

from tunesmith.connect.clients import KEY_VARIABLE, Target
from tunesmith.errors import UserError, first_line

SECONDS_TO_ANSWER = 300

QUESTION = "What is the weather in Paris? Use the tool get_weather."

TOOL = {"name": "get_weather", "description": "Gives the weather of a city."}

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}

PLAIN_QUESTION = "Say hello."


def find_target(url: str, model: str | None, key: str | None) -> Target:
    """Asks the server what it serves; a UserError says why there is nothing to connect with."""
    url = url.rstrip("/").removesuffix("/v1")
    try:
        served = {item["id"]: item["tunesmith"] for item in _ask(f"{url}/v1/models", key)["data"]}
        tuned = [name for name, facts in served.items() if facts["kind"] == "tuned"]
        chosen = model or next(iter(tuned or served), None)
        if chosen not in served:
            raise UserError(f"--model {model}: not served at {url}; there is {', '.join(served) or 'no model'}")
        return Target(url, chosen, key, served[chosen]["context"], served[chosen]["tools"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{url}: the server there is not `tunesmith serve`; pass --url") from error


def _chat(question: str) -> dict:
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 256,
        "tools": [{"type": "function", "function": {**TOOL, "parameters": CITY}}],
    }


def _chat_streamed(events: list[dict]) -> dict:
    message = {"content": "", "tool_calls": []}
    for delta in (event["choices"][0]["delta"] for event in events if event["choices"]):
        message["content"] += delta.get("content") or ""
        for piece in delta.get("tool_calls") or []:
            if piece["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({"function": {"name": piece["function"]["name"], "arguments": ""}})
            function = message["tool_calls"][piece["index"]]["function"]
            function["arguments"] += piece["function"].get("arguments") or ""
    return {"choices": [{"message": message}]}


def _chat_answer(reply: dict) -> tuple[list, str]:
    message = reply["choices"][0]["message"]
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return [(call["name"], call["arguments"]) for call in calls], message.get("content") or ""


def _responses(question: str) -> dict:
    return {
        "input": question,
        "max_output_tokens": 256,
        "store": False,
        "tools": [{"type": "function", **TOOL, "parameters": CITY}],
    }


def _responses_streamed(events: list[dict]) -> dict:
    return {"output": [event["item"] for event in events if event["type"] == "response.output_item.done"]}


def _responses_answer(reply: dict) -> tuple[list, str]:
    calls = [(item["name"], item["arguments"]) for item in reply["output"] if item["type"] == "function_call"]
    parts = [part for item in reply["output"] if item["type"] == "message" for part in item["content"]]
    return calls, "".join(part.get("text", "") for part in parts)


def _messages(question: str) -> dict:
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 256,
        "tools": [{**TOOL, "input_schema": CITY}],
    }


def _messages_streamed(events: list[dict]) -> dict:
    blocks, written = {}, {}
    for event in events:
        if event["type"] == "content_block_start":
            blocks[event["index"]], written[event["index"]] = event["content_block"], ""
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            written[event["index"]] += delta.get("text") or delta.get("partial_json") or ""
    whole = {"text": lambda text: {"text": text}, "tool_use": lambda text: {"input": json.loads(text or "{}")}}
    return {
        "content": [
            block | whole[block["type"]](written[index]) for index, block in blocks.items() if block["type"] in whole
        ]
    }


def _messages_answer(reply: dict) -> tuple[list, str]:
    calls = [(item["name"], json.dumps(item["input"])) for item in reply["content"] if item["type"] == "tool_use"]
    return calls, "".join(item["text"] for item in reply["content"] if item["type"] == "text")


APIS = {
    "chat": ("/v1/chat/completions", _chat, _chat_answer, _chat_streamed),
    "responses": ("/v1/responses", _responses, _responses_answer, _responses_streamed),
    "messages": ("/v1/messages", _messages, _messages_answer, _messages_streamed),
}


def try_out(api: str, target: Target) -> str:
    """What came of one question through an API, whole and, if a tool was called, streamed: the result line."""
    path, ask, _, _ = APIS[api]
    body = {"model": target.model, "temperature": 0, **ask(QUESTION if target.tools else PLAIN_QUESTION)}
    if not target.tools:
        del body["tools"]
    calls, text = _try(api, target, body)
    if not calls:
        said = f"it answered “{_one_line(text)}”"
        if target.tools:
            return f"Test: {target.model} answers through {path}, but no tool call came back; {said}."
        return f"Test passed without a tool: {target.model} answers through {path}; {said}."
    streamed, text = _try(api, target, body | {"stream": True})
    (name, arguments), *_ = calls
    called = f"{target.model} called {_one_line(name)} with {_one_line(arguments)} through {path}"
    if not streamed:
        return f"Test: {called}, but streamed no tool call came back; it answered “{_one_line(text)}”."
    return f"Test passed: {called}, whole and streamed."


def _try(api: str, target: Target, body: dict) -> tuple[list, str]:
    """(tool calls as (name, arguments), text) of the answer to a request."""
    path, _, answer, gather = APIS[api]
    reply = _ask(target.url + path, target.key, body)
    try:
        return answer(gather(reply) if body.get("stream") else reply)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{target.url}{path}: an answer that is not of this API: {json.dumps(reply)[:200]}") from error


def _one_line(text: str) -> str:
    """What a model wrote, short and without anything that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:100]


def _ask(url: str, key: str | None, body: dict | None = None):
    """JSON from the server, or a list of it if a stream was asked for, never through a proxy."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url {url}: begins with neither http:// nor https://")
    headers = {"Content-Type": "application/json", "anthropic-version": "2023-06-01"}
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode() if body else None,
        headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SECONDS_TO_ANSWER) as reply:
            text = reply.read()
        return _events(text) if body and body.get("stream") else json.loads(text)
    except urllib.error.HTTPError as error:
        raise UserError(_refusal(url, error)) from error
    except TimeoutError as error:
        raise UserError(f"{url}: no answer within {SECONDS_TO_ANSWER} seconds") from error
    except OSError as error:
        raise UserError(
            f"{url}: no server answers ({getattr(error, 'reason', error)}); start one with `tunesmith "
            f"serve RUN`, or pass --url"
        ) from error
    except (http.client.HTTPException, ValueError) as error:
        raise UserError(f"{url}: the server there is not `tunesmith serve`; pass --url") from error


def _events(text: bytes) -> list[dict]:
    lines = [line[5:].strip() for line in text.splitlines() if line.startswith(b"data:")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return f"{url}: the server requires a key; pass --api-key or set {KEY_VARIABLE}"
    try:
        return f"{url}: {first_line(json.loads(error.read())['error']['message'])}"
    except (ValueError, KeyError, TypeError):
        return f"{url}: the server answered {error.code} {error.reason}"
