"""Anthropic's Messages API, with token counting."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import Field

from tunesmith.answer_formats.format import Call, Thought
from tunesmith.inference.interface import Refused
from tunesmith.serve.answering import Answer, Answers, GenerationRequest, Service
from tunesmith.serve.apis.forms import FormOptions
from tunesmith.serve.apis.openai_api import AnswerStream
from tunesmith.serve.apis.wire import STREAMED, frame, text_of, thinking_of, tool, tool_call
from tunesmith.serve.options import Wire

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
TEXT = {"type": "text", "text": ""}
THINKING = {"type": "thinking", "thinking": "", "signature": ""}  # this server signs nothing
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


class Thinking(Wire):
    type: str
    display: str | None = None


class OutputConfig(Wire):
    format: dict | None = None
    effort: str | None = None


class CountRequest(FormOptions):
    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    system: str | list[dict] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict | None = None

    @property
    def thinks(self) -> bool:
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def shows_thinking(self) -> bool:
        return self.thinks and self.thinking.display != "omitted"


class MessagesRequest(CountRequest):
    max_tokens: int = Field(ge=1)
    stream: bool | None = None
    stop_sequences: list[str] | None = None


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/messages", responses=STREAMED)
    async def messages(body: MessagesRequest, http: HttpRequest):
        generation = _generation(body)
        generation.max_new_tokens, generation.stream = body.max_tokens, bool(body.stream)
        generation.stop = tuple(s for s in body.stop_sequences or [] if s)
        answers = await service.answers(generation)
        head = {
            "id": "msg_" + uuid.uuid4().hex,
            "type": "message",
            "role": "assistant",
            "model": service.served(body.model).name,
        }
        if body.stream:
            return AnswerStream(answers, _stream(answers, head, body.shows_thinking))
        (answer,) = await answers.collect(http)
        blocks = _blocks(answer, body.shows_thinking)
        return JSONResponse({**head, "content": blocks, **_end(answer), "usage": _usage(answers)})

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountRequest):
        _, ids = await run_in_threadpool(service.prompt, _generation(body))
        return {"input_tokens": len(ids)}

    return router


def problem(error: Refused) -> dict:
    """Returns an error in Anthropic's form."""
    type_ = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": type_, "message": error.message}}


def _generation(body: CountRequest) -> GenerationRequest:
    messages = [{"role": "system", "content": text_of(body.system)}] if body.system else []
    for message in body.messages:
        messages += _messages(message)
    prefill = ""
    if len(messages) > 1 and messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        prefill = messages.pop()["content"].rstrip()
    # Any other type is a tool that Anthropic's service runs itself.
    tools = [tool(t.name, t.description, t.input_schema) for t in body.tools or [] if t.type in (None, "custom")]
    choice = body.tool_choice or ToolChoice(type="auto")
    if choice.type == "tool" and not choice.name:
        raise Refused("tool_choice of type tool: give its name", parameter="tool_choice")
    names = {"auto": "auto", "none": "none", "any": "required", "tool": choice.name}
    # A client that does not enable thinking expects all its tokens in the answer.
    template = {} if body.thinks else {"enable_thinking": False}
    config = body.output_config or OutputConfig()
    form = body.form(config.format or body.output_format, "output_config.format")
    if body.thinks:
        template |= thinking_of(config.effort)
    return GenerationRequest(
        body.model,
        messages,
        body,
        tools,
        names[choice.type],
        not choice.disable_parallel_tool_use,
        form,
        template,
        prefill,
    )


def _messages(message: Message) -> list[dict]:
    """Converts one message for the template, where each tool result is a message. Raises Refused."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    messages, text, reasoning, calls = [], "", "", []
    for block in message.content:
        type_ = block.get("type")
        if type_ == "tool_use" and message.role == "assistant":
            calls.append(tool_call(str(block.get("name")), block.get("input") or {}, str(block.get("id"))))
        elif type_ == "tool_result" and message.role == "user":
            messages.append(
                {
                    "role": "tool",
                    "content": text_of(block.get("content")),
                    "tool_call_id": str(block.get("tool_use_id")),
                }
            )
        elif type_ == "thinking":
            reasoning += str(block.get("thinking") or "")
        elif type_ != "redacted_thinking":
            text += text_of([block])
    if text or calls or not messages:
        more = {"reasoning_content": reasoning, "tool_calls": calls}
        messages.append({"role": message.role, "content": text, **{key: value for key, value in more.items() if value}})
    return messages


def _blocks(answer: Answer, with_thinking: bool) -> list[dict]:
    blocks = [{**THINKING, "thinking": answer.reasoning}] if answer.reasoning and with_thinking else []
    blocks += [{**TEXT, "text": answer.text}] if answer.text or not answer.calls else []
    return blocks + [_use(call) for call in answer.calls]


def _use(call: Call) -> dict:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}


def _end(answer: Answer) -> dict:
    reason = "stop_sequence" if answer.stop_text is not None else STOP_REASONS[answer.finish]
    return {"stop_reason": reason, "stop_sequence": answer.stop_text}


def _usage(answers: Answers) -> dict:
    return {
        "input_tokens": answers.prompt_tokens - answers.cached,
        "output_tokens": answers.generated,
        "cache_read_input_tokens": answers.cached,
        "cache_creation_input_tokens": 0,
    }


async def _stream(answers: Answers, head: dict, with_thinking: bool) -> AsyncIterator[str]:
    start = {"input_tokens": answers.prompt_tokens, "output_tokens": 0}
    yield _event(
        "message_start", message={**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": start}
    )
    blocks = _Blocks()
    try:
        async for _, event in answers.events():
            if isinstance(event, Call):
                frames = blocks.whole(
                    {**_use(event), "input": {}}, {"type": "input_json_delta", "partial_json": event.arguments}
                )
            elif isinstance(event, Answer):
                frames = blocks.close()
            elif not isinstance(event, Thought):
                frames = blocks.grow(TEXT, {"type": "text_delta", "text": event.text})
            elif with_thinking:
                frames = blocks.grow(THINKING, {"type": "thinking_delta", "thinking": event.text})
            else:
                continue
            for data in frames:
                yield data
        (answer,) = answers.done
        yield _event("message_delta", delta=_end(answer), usage=_usage(answers))
        yield _event("message_stop")
    except Refused as error:
        yield frame(problem(error), "error")


class _Blocks:
    """Builds the events of a message's blocks, one block at a time. Each method returns the events to send."""

    def __init__(self):
        self._index = 0
        self._open: dict | None = None

    def grow(self, block: dict, delta: dict) -> list[str]:
        """Adds a delta to the open block, or to a new one if the open block has another type."""
        begun = []
        if self._open is not block:
            begun = [*self.close(), _event("content_block_start", index=self._index, content_block=block)]
            self._open = block
        return [*begun, _event("content_block_delta", index=self._index, delta=delta)]

    def whole(self, block: dict, delta: dict) -> list[str]:
        return [*self.grow(block, delta), *self.close()]

    def close(self) -> list[str]:
        if self._open is None:
            return []
        signed = {"type": "signature_delta", "signature": ""}
        events = [_event("content_block_delta", index=self._index, delta=signed)] if self._open is THINKING else []
        events.append(_event("content_block_stop", index=self._index))
        self._index, self._open = self._index + 1, None
        return events


def _event(kind: str, **values) -> str:
    return frame({"type": kind, **values}, kind)
