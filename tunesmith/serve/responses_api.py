"""OpenAI's Responses API, without state: every request brings the whole conversation."""

import time
import uuid
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from pydantic import Field

from tunesmith.serve.answering import Answer, Answers, Asked, Said, Service
from tunesmith.serve.engine import Refused
from tunesmith.serve.openai_api import choice_of, schema_of, sse
from tunesmith.serve.tools import Call
from tunesmith.serve.wire import STREAMED, Options, frame, text_of, tool, tool_call

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
STATE = ("previous_response_id", "conversation", "prompt")


class ResponsesRequest(Options):
    model: str | None = None
    input: str | list[dict]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    tools: list[dict] | None = None
    tool_choice: str | dict | None = None
    parallel_tool_calls: bool | None = None
    text: dict | None = None
    metadata: dict | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict | None = None
    prompt: dict | None = None
    chat_template_kwargs: dict | None = None


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", responses=STREAMED)
    async def responses(body: ResponsesRequest, http: HttpRequest):
        asked = _asked(body)
        answers = await service.answers(asked)
        head = _head(body, asked, service.served(body.model).name)
        if body.stream:
            return sse(_stream(answers, head))
        answer, = await answers.collect(http)
        output = ([_message(answer.text)] if answer.text or not answer.calls else []) + [
            _call(call) for call in answer.calls]
        return JSONResponse(_complete(head, answers, output))

    return router


def _asked(body: ResponsesRequest) -> Asked:
    for name in STATE:
        if getattr(body, name) is not None:
            raise Refused(f"{name}: this server keeps no state; send the whole conversation as input",
                          code="unsupported_parameter", parameter=name)
    if body.background:
        raise Refused("background: not supported", code="unsupported_parameter", parameter="background")
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    given = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for item in given:
        _add(messages, item)
    if not messages:
        raise Refused("input: empty", parameter="input")
    tools = [tool(t["name"], t.get("description"), t.get("parameters")) for t in body.tools or []
             if t.get("type") == "function" and isinstance(t.get("name"), str)]
    return Asked(body.model, messages, body, tools, choice_of(body.tool_choice),
                 body.parallel_tool_calls is not False, schema_of((body.text or {}).get("format")),
                 body.chat_template_kwargs or {}, max_new_tokens=body.max_output_tokens, stream=bool(body.stream))


def _add(messages: list[dict], item: dict) -> None:
    """Adds one input item to the messages. Raises Refused."""
    kind = item.get("type", "message")
    if kind == "message":
        role, content = ROLES.get(str(item.get("role"))), item.get("content")
        if role is None or not isinstance(content, list | str):
            raise Refused(f"input: a message of role {item.get('role')!r} needs a role and content", parameter="input")
        messages.append({"role": role, "content": text_of(content)})
    elif kind == "function_call":
        call = tool_call(str(item.get("name")), item.get("arguments") or "{}", str(item.get("call_id")))
        if messages and messages[-1]["role"] == "assistant":
            messages[-1]["tool_calls"] = [*messages[-1].get("tool_calls", []), call]
        else:
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    elif kind == "function_call_output":
        messages.append({"role": "tool", "content": text_of(item.get("output")),
                         "tool_call_id": str(item.get("call_id"))})
    elif kind != "reasoning":
        raise Refused(f"input: an item of type {kind!r} cannot be read here", parameter="input")


def _head(body: ResponsesRequest, asked: Asked, model: str) -> dict:
    return {
        "id": "resp_" + uuid.uuid4().hex, "object": "response", "created_at": int(time.time()), "model": model,
        "status": "in_progress", "output": [], "error": None, "incomplete_details": None, "usage": None,
        "instructions": body.instructions, "metadata": body.metadata or {}, "temperature": body.temperature,
        "top_p": body.top_p, "max_output_tokens": body.max_output_tokens, "tool_choice": body.tool_choice or "auto",
        "tools": [{"type": "function", "strict": False, **t["function"]} for t in asked.tools],
        "parallel_tool_calls": asked.parallel, "text": body.text or {"format": {"type": "text"}},
        "previous_response_id": None, "store": False, "truncation": "disabled", "background": False}


def _message(text: str, identity: str | None = None, status: str = "completed") -> dict:
    return {"type": "message", "id": identity or "msg_" + uuid.uuid4().hex, "role": "assistant", "status": status,
            "content": [_part(text)]}


def _part(text: str) -> dict:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(call: Call, identity: str | None = None) -> dict:
    return {"type": "function_call", "id": identity or "fc_" + uuid.uuid4().hex, "call_id": call.id,
            "name": call.name, "arguments": call.arguments, "status": "completed"}


def _complete(head: dict, answers: Answers, output: list[dict]) -> dict:
    cut = answers.done[0].finish == "length"
    usage = {"input_tokens": answers.prompt_tokens,
             "input_tokens_details": {"cached_tokens": answers.cached, "cache_write_tokens": 0},
             "output_tokens": answers.generated, "output_tokens_details": {"reasoning_tokens": 0},
             "total_tokens": answers.prompt_tokens + answers.generated}
    return {**head, "status": "incomplete" if cut else "completed", "output": output, "usage": usage,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None}


class _Events:
    """The events of one response, numbered."""

    def __init__(self):
        self._number = 0
        self.output: list[dict] = []

    def __call__(self, kind: str, **values) -> str:
        data = {"type": kind, "sequence_number": self._number, **values}
        self._number += 1
        return frame(data, kind)

    def begin_text(self, identity: str) -> list[str]:
        at = len(self.output)
        item = {**_message("", identity, "in_progress"), "content": []}
        return [self("response.output_item.added", output_index=at, item=item),
                self("response.content_part.added", output_index=at, item_id=identity, content_index=0,
                     part=_part(""))]

    def text(self, identity: str, text: str) -> str:
        return self("response.output_text.delta", output_index=len(self.output), item_id=identity, content_index=0,
                    delta=text, logprobs=[])

    def end_text(self, identity: str, text: str) -> list[str]:
        where = {"output_index": len(self.output), "item_id": identity, "content_index": 0}
        item = _message(text, identity)
        frames = [self("response.output_text.done", **where, text=text, logprobs=[]),
                  self("response.content_part.done", **where, part=_part(text)),
                  self("response.output_item.done", output_index=len(self.output), item=item)]
        self.output.append(item)
        return frames

    def call(self, call: Call) -> list[str]:
        item = _call(call)
        where = {"output_index": len(self.output), "item_id": item["id"]}
        begun = {**item, "arguments": "", "status": "in_progress"}
        frames = [self("response.output_item.added", output_index=len(self.output), item=begun),
                  self("response.function_call_arguments.delta", **where, delta=call.arguments),
                  self("response.function_call_arguments.done", **where, arguments=call.arguments, name=call.name),
                  self("response.output_item.done", output_index=len(self.output), item=item)]
        self.output.append(item)
        return frames


async def _stream(answers: Answers, head: dict) -> AsyncIterator[str]:
    events = _Events()
    yield events("response.created", response=head)
    yield events("response.in_progress", response=head)
    identity, text = None, ""
    try:
        async for _, said in answers.events():
            if isinstance(said, Said):
                if identity is None:
                    identity, text = "msg_" + uuid.uuid4().hex, ""
                    for made in events.begin_text(identity):
                        yield made
                text += said.text
                yield events.text(identity, said.text)
                continue
            if isinstance(said, Answer) and identity is None and not events.output:  # an empty answer is a message too
                identity = "msg_" + uuid.uuid4().hex
                for made in events.begin_text(identity):
                    yield made
            if identity is not None:
                for made in events.end_text(identity, text):
                    yield made
                identity = None
            if isinstance(said, Call):
                for made in events.call(said):
                    yield made
        done = _complete(head, answers, events.output)
        yield events(f"response.{done['status']}", response=done)
    except Refused as error:
        failed = {"code": "server_error", "message": error.message}
        yield events("response.failed", response={**head, "status": "failed", "error": failed})
