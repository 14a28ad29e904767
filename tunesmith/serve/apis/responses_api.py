"""OpenAI's Responses API, stateless: every request must contain the whole conversation.

Responses and events have the fields that openresponses.org requires, and OpenAI's names for reasoning events.
"""

import time
import uuid
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from pydantic import Field

from tunesmith.answer_formats.format import Call, Thought
from tunesmith.inference.interface import Refused, Served
from tunesmith.serve.answering import Answer, Answers, GenerationRequest, Service
from tunesmith.serve.apis.forms import FormOptions
from tunesmith.serve.apis.openai_api import AnswerStream, choice_of
from tunesmith.serve.apis.wire import STREAMED, frame, text_of, thinking_of, tool, tool_call
from tunesmith.serve.options import Wire, sampling_of

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
STATE = ("previous_response_id", "conversation", "prompt")
ONLY_REASONING = {"role", "reasoning_content"}
TEXT, REASONING = "output_text", "reasoning_text"  # types of parts


class ReasoningOptions(Wire):
    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(FormOptions):
    model: str | None = None
    input: str | list[dict]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    tools: list[dict] | None = None
    tool_choice: str | dict | None = None
    parallel_tool_calls: bool | None = None
    text: dict | None = None
    reasoning: ReasoningOptions | None = None
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
        generation = _generation(body)
        answers = await service.answers(generation)
        head = _head(body, generation, service.served(body.model))
        if body.stream:
            return AnswerStream(answers, _stream(answers, head))
        (answer,) = await answers.collect(http)
        return JSONResponse(_complete(head, answers, _output(answer)))

    return router


def _generation(body: ResponsesRequest) -> GenerationRequest:
    for name in STATE:
        if getattr(body, name) is not None:
            raise Refused(
                f"{name}: this server keeps no state; send the whole conversation as input",
                code="unsupported_parameter",
                parameter=name,
            )
    if body.background:
        raise Refused("background: not supported", code="unsupported_parameter", parameter="background")
    messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for item in items:
        _add(messages, item)
    messages = [message for message in messages if message.keys() != ONLY_REASONING]
    if not messages:
        raise Refused("input: empty", parameter="input")
    choice, tools = choice_of(body.tool_choice, _tools(body))
    return GenerationRequest(
        body.model,
        messages,
        body,
        tools,
        choice,
        body.parallel_tool_calls is not False,
        body.form((body.text or {}).get("format"), "text.format"),
        thinking_of(body.reasoning and body.reasoning.effort) | (body.chat_template_kwargs or {}),
        max_new_tokens=body.max_output_tokens,
        stream=bool(body.stream),
    )


def _tools(body: ResponsesRequest) -> list[dict]:
    return [
        tool(t["name"], t.get("description"), t.get("parameters"))
        for t in body.tools or []
        if t.get("type") == "function" and isinstance(t.get("name"), str)
    ]


def _add(messages: list[dict], item: dict) -> None:
    """Adds one input item to the messages. Raises Refused for an item that cannot be converted."""
    kind = item.get("type", "message")
    if kind == "message":
        role, content = ROLES.get(str(item.get("role"))), item.get("content")
        if role is None or not isinstance(content, list | str):
            raise Refused(f"input: a message of role {item.get('role')!r} needs a role and content", parameter="input")
        message = {"role": role, "content": text_of(content)}
        messages.append(message if role != "assistant" else _reasoned(messages) | message)
    elif kind == "function_call":
        call = tool_call(str(item.get("name")), item.get("arguments") or "{}", str(item.get("call_id")))
        if not messages or messages[-1]["role"] != "assistant" or messages[-1].keys() == ONLY_REASONING:
            messages.append(_reasoned(messages) | {"role": "assistant", "content": ""})
        messages[-1]["tool_calls"] = [*messages[-1].get("tool_calls", []), call]
    elif kind == "function_call_output":
        messages.append(
            {"role": "tool", "content": text_of(item.get("output")), "tool_call_id": str(item.get("call_id"))}
        )
    elif kind == "reasoning":
        texts = [_reasoned(messages).get("reasoning_content"), *_reasoning_texts(item)]
        if reasoning := "\n\n".join(text for text in texts if text):
            messages.append({"role": "assistant", "reasoning_content": reasoning})
    else:
        raise Refused(f"input: an item of type {kind!r} is not supported", parameter="input")


def _reasoning_texts(item: dict) -> list[str]:
    parts = item.get("content") or item.get("summary")
    return [str(part.get("text") or "") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _reasoned(messages: list[dict]) -> dict:
    """Removes and returns reasoning at the end of the messages, to put it into the assistant's message after it."""
    return messages.pop() if messages and messages[-1].keys() == ONLY_REASONING else {}


def _head(body: ResponsesRequest, generation: GenerationRequest, served: Served) -> dict:
    sampling = sampling_of(served, generation.options)
    return {
        "id": "resp_" + uuid.uuid4().hex,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "model": served.name,
        "status": "in_progress",
        "output": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
        "instructions": body.instructions,
        "metadata": body.metadata or {},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_logprobs": 0,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "parallel_tool_calls": generation.parallel,
        "tools": [{"type": "function", "strict": False, **t["function"]} for t in _tools(body)],
        "tool_choice": body.tool_choice or "auto",
        "text": _text_options(body.text or {}),
        "reasoning": {"effort": None, "summary": None} | (body.reasoning.model_dump() if body.reasoning else {}),
        "previous_response_id": None,
        "store": False,
        "truncation": "disabled",
        "background": False,
        "service_tier": "default",
        "user": None,
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


def _text_options(options: dict) -> dict:
    """Returns the request's `text` options with defaults for the fields that it omits."""
    form = options.get("format") or {}
    form = {"type": form} if isinstance(form, str) else {"type": "text", **form}
    if form["type"] == "json_schema":
        form = {"name": "answer", "description": None, "strict": True, **form}
    return {**options, "format": form}


def _item(kind: str, identity: str, text: str | None, status: str) -> dict:
    """Returns a message item, or a reasoning item if `kind` is REASONING. Without text, its content is empty."""
    content = [] if text is None else [_part(kind, text)]
    if kind == REASONING:
        return {"type": "reasoning", "id": identity, "status": status, "summary": [], "content": content}
    return {"type": "message", "id": identity, "role": "assistant", "status": status, "content": content}


def _part(kind: str, text: str) -> dict:
    return {"type": kind, "text": text, **({"annotations": [], "logprobs": []} if kind == TEXT else {})}


def _new_id(kind: str) -> str:
    return ("rs_" if kind == REASONING else "msg_") + uuid.uuid4().hex


def _call(call: Call) -> dict:
    return {
        "type": "function_call",
        "id": "fc_" + uuid.uuid4().hex,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }


def _output(answer: Answer) -> list[dict]:
    texts = [(REASONING, answer.reasoning)] if answer.reasoning else []
    texts += [(TEXT, answer.text)] if answer.text or not (answer.calls or answer.reasoning) else []
    items = [_item(kind, _new_id(kind), text, "completed") for kind, text in texts]
    if items and not answer.calls:
        items[-1]["status"] = _status(answer)
    return items + [_call(call) for call in answer.calls]


def _status(answer: Answer) -> str:
    return "incomplete" if answer.finish == "length" else "completed"


def _complete(head: dict, answers: Answers, output: list[dict]) -> dict:
    (answer,) = answers.done
    cut = answer.finish == "length"
    usage = {
        "input_tokens": answers.prompt_tokens,
        "input_tokens_details": {"cached_tokens": answers.cached, "cache_write_tokens": 0},
        "output_tokens": answers.generated,
        "output_tokens_details": {"reasoning_tokens": answers.reasoning_tokens},
        "total_tokens": answers.prompt_tokens + answers.generated,
    }
    return {
        **head,
        "status": _status(answer),
        "output": output,
        "usage": usage,
        "completed_at": None if cut else int(time.time()),
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
    }


class _Events:
    """Builds the numbered events of one response. Each method returns the events to send. Text and reasoning are added
    to the open item."""

    def __init__(self):
        self.output: list[dict] = []
        self._number = 0
        self._kind, self._identity, self._text = "", "", ""  # of the open item

    def event(self, kind: str, **values) -> str:
        data = {"type": f"response.{kind}", "sequence_number": self._number, **values}
        self._number += 1
        return frame(data, data["type"])

    def grow(self, kind: str, text: str) -> list[str]:
        """Adds text of a kind: TEXT or REASONING."""
        frames = [] if kind == self._kind else [*self.close(), *self._begin(kind)]
        self._text += text
        more = {"logprobs": []} if kind == TEXT else {}
        return [*frames, self.event(f"{kind}.delta", **self._where, content_index=0, delta=text, **more)]

    def close(self, status: str = "completed") -> list[str]:
        if not self._kind:
            return []
        kind, text, where = self._kind, self._text, {**self._where, "content_index": 0}
        item = _item(kind, self._identity, text, status)
        more = {"logprobs": []} if kind == TEXT else {}
        frames = [
            self.event(f"{kind}.done", **where, text=text, **more),
            self.event("content_part.done", **where, part=_part(kind, text)),
            self.event("output_item.done", output_index=len(self.output), item=item),
        ]
        self.output.append(item)
        self._kind = ""
        return frames

    def call(self, call: Call) -> list[str]:
        frames, item = self.close(), _call(call)
        self._identity = item["id"]
        begun = {**item, "arguments": "", "status": "in_progress"}
        frames += [
            self.event("output_item.added", output_index=len(self.output), item=begun),
            self.event("function_call_arguments.delta", **self._where, delta=call.arguments),
            self.event("function_call_arguments.done", **self._where, arguments=call.arguments, name=call.name),
            self.event("output_item.done", output_index=len(self.output), item=item),
        ]
        self.output.append(item)
        return frames

    def end(self, answer: Answer) -> list[str]:
        empty = not (self.output or self._kind)  # an empty answer is a message too
        return (self._begin(TEXT) if empty else []) + self.close(_status(answer))

    @property
    def _where(self) -> dict:
        return {"output_index": len(self.output), "item_id": self._identity}

    def _begin(self, kind: str) -> list[str]:
        self._kind, self._identity, self._text = kind, _new_id(kind), ""
        item = _item(kind, self._identity, None, "in_progress")
        return [
            self.event("output_item.added", output_index=len(self.output), item=item),
            self.event("content_part.added", **self._where, content_index=0, part=_part(kind, "")),
        ]


async def _stream(answers: Answers, head: dict) -> AsyncIterator[str]:
    events = _Events()
    yield events.event("created", response=head)
    yield events.event("in_progress", response=head)
    try:
        async for _, event in answers.events():
            if isinstance(event, Call):
                frames = events.call(event)
            elif isinstance(event, Answer):
                frames = events.end(event)
            else:
                frames = events.grow(REASONING if isinstance(event, Thought) else TEXT, event.text)
            for data in frames:
                yield data
        done = _complete(head, answers, events.output)
        yield events.event(done["status"], response=done)
    except Refused as error:
        failed = {"code": "server_error", "message": error.message}
        yield events.event("failed", response={**head, "status": "failed", "error": failed})
    yield frame("[DONE]")
