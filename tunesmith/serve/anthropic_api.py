"""Anthropic's Messages API, and its counting of tokens."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import Field

from tunesmith.serve.answering import Answer, Answers, Asked, Service
from tunesmith.serve.engine import Refused
from tunesmith.serve.openai_api import sse
from tunesmith.serve.tools import Call
from tunesmith.serve.wire import STREAMED, Options, Wire, frame, text_of, tool, tool_call

SKIPPED = ("thinking", "redacted_thinking")
KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
         413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Message(Wire):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict]


class Tool(Wire):
    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict | None = None


class ToolChoice(Wire):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Wire):
    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    system: str | list[dict] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None


class MessagesRequest(CountRequest):
    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31)
    stop_sequences: list[str] | None = None


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/messages", responses=STREAMED)
    async def messages(body: MessagesRequest, http: HttpRequest):
        asked = _asked(body)
        options = Options(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k)
        asked.options, asked.max_new_tokens, asked.stream = options, body.max_tokens, bool(body.stream)
        asked.stop = tuple(s for s in body.stop_sequences or [] if s)
        answers = await service.answers(asked)
        head = {"id": "msg_" + uuid.uuid4().hex, "type": "message", "role": "assistant",
                "model": service.served(body.model).name}
        if body.stream:
            return sse(_stream(answers, head))
        answer, = await answers.collect(http)
        return JSONResponse({**head, "content": _blocks(answer), **_end(answer), "usage": _usage(answers)})

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountRequest):
        _, ids = await run_in_threadpool(service.prompt, _asked(body))
        return {"input_tokens": len(ids)}

    return router


def problem(error: Refused) -> dict:
    """An error as Anthropic's clients expect it."""
    kind = KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def _asked(body: CountRequest) -> Asked:
    messages = [{"role": "system", "content": text_of(body.system)}] if body.system else []
    for message in body.messages:
        messages += _messages(message)
    prefill = ""
    if len(messages) > 1 and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        prefill = messages.pop()["content"].rstrip()
    # A type of its own has a tool that the service would run itself.
    tools = [tool(t.name, t.description, t.input_schema) for t in body.tools or [] if t.type in (None, "custom")]
    choice = body.tool_choice or ToolChoice(type="auto")
    if choice.type == "tool" and not choice.name:
        raise Refused("tool_choice of type tool: give its name", parameter="tool_choice")
    names = {"auto": "auto", "none": "none", "any": "required", "tool": choice.name}
    return Asked(body.model, messages, Options(), tools, names[choice.type], not choice.disable_parallel_tool_use,
                 prefill=prefill)


def _messages(message: Message) -> list[dict]:
    """One message as the template's: results of tools are messages of their own. Raises Refused."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    found, text, calls = [], "", []
    for block in message.content:
        kind = block.get("type")
        if kind == "tool_use" and message.role == "assistant":
            calls.append(tool_call(str(block.get("name")), block.get("input") or {}, str(block.get("id"))))
        elif kind == "tool_result" and message.role == "user":
            found.append({"role": "tool", "content": text_of(block.get("content")),
                          "tool_call_id": str(block.get("tool_use_id"))})
        elif kind not in SKIPPED:
            text += text_of([block])
    if text or calls or not found:
        found.append({"role": message.role, "content": text, **({"tool_calls": calls} if calls else {})})
    return found


def _blocks(answer: Answer) -> list[dict]:
    blocks = [{"type": "text", "text": answer.text}] if answer.text or not answer.calls else []
    return blocks + [_use(call) for call in answer.calls]


def _use(call: Call) -> dict:
    try:
        arguments = json.loads(call.arguments)
    except ValueError:
        arguments = None
    return {"type": "tool_use", "id": call.id, "name": call.name,
            "input": arguments if isinstance(arguments, dict) else {}}


def _end(answer: Answer) -> dict:
    reason = "stop_sequence" if answer.stop_text is not None else STOP_REASONS[answer.finish]
    return {"stop_reason": reason, "stop_sequence": answer.stop_text}


def _usage(answers: Answers) -> dict:
    return {"input_tokens": answers.prompt_tokens - answers.cached, "output_tokens": answers.generated,
            "cache_read_input_tokens": answers.cached, "cache_creation_input_tokens": 0}


async def _stream(answers: Answers, head: dict) -> AsyncIterator[str]:
    def event(kind: str, **values) -> str:
        return frame({"type": kind, **values}, kind)

    start = {"input_tokens": answers.prompt_tokens, "output_tokens": 0}
    yield event("message_start", message={**head, "content": [], "stop_reason": None, "stop_sequence": None,
                                          "usage": start})
    index, open_text = 0, False
    try:
        async for _, said in answers.events():
            if open_text and isinstance(said, Call):
                yield event("content_block_stop", index=index)
                index, open_text = index + 1, False
            if isinstance(said, Call):
                block = {**_use(said), "input": {}}
                yield event("content_block_start", index=index, content_block=block)
                delta = {"type": "input_json_delta", "partial_json": said.arguments}
                yield event("content_block_delta", index=index, delta=delta)
                yield event("content_block_stop", index=index)
                index += 1
            elif not isinstance(said, Answer):
                if not open_text:
                    yield event("content_block_start", index=index, content_block={"type": "text", "text": ""})
                    open_text = True
                yield event("content_block_delta", index=index, delta={"type": "text_delta", "text": said.text})
        if open_text:
            yield event("content_block_stop", index=index)
        answer, = answers.done
        yield event("message_delta", delta=_end(answer), usage=_usage(answers))
        yield event("message_stop")
    except Refused as error:
        yield frame(problem(error), "error")
