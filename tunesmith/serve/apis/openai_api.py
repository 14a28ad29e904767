"""OpenAI's API: models, chat completions and embeddings. /render shows a prompt."""

import base64
import struct
import time
import uuid
from asyncio import wrap_future
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from tunesmith.answer_formats.format import Call, Thought
from tunesmith.inference.interface import Refused, Token
from tunesmith.serve.answering import Answer, Answers, GenerationRequest, Service
from tunesmith.serve.apis.forms import FormOptions
from tunesmith.serve.apis.wire import STREAMED, ToolCall, frame, text_of, thinking_of, tool, tool_call
from tunesmith.serve.options import Options, Wire
from tunesmith.serve.registry import ServedModel

Stop = str | list[str] | None


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict] | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    prefix: bool | None = None


class StreamOptions(Wire):
    include_usage: bool | None = None


class ChatRequest(FormOptions):
    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=16)
    stop: Stop = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: dict | str | None = None
    tools: list[dict] | None = None
    tool_choice: str | dict | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


class EmbeddingRequest(Wire):
    model: str | None = None
    input: str | list[int] | list[str] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None


class RenderRequest(Wire):
    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    tools: list[dict] | None = None
    chat_template_kwargs: dict | None = None


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def models():
        return {"object": "list", "data": [_model(one) for one in service.facts()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str):
        served = service.served(name)
        return next(_model(one) for one in service.facts() if one.name == served.name)

    @router.post("/v1/chat/completions", responses=STREAMED)
    async def chat(body: ChatRequest, http: HttpRequest):
        generation = _generation(body)
        answers = await service.answers(generation)
        head = heading("chatcmpl-", service.served(generation.model).name)
        if body.stream:
            return AnswerStream(answers, _chat_stream(answers, head, wants_usage(body), generation.logprobs))
        done = await answers.collect(http)
        choices = [
            {
                "index": i,
                "message": _message(answer),
                "finish_reason": answer.finish,
                "logprobs": _logprobs(answer.tokens) if body.logprobs else None,
            }
            for i, answer in enumerate(done)
        ]
        return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage(answers)})

    @router.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest):
        served = service.served(body.model)
        inputs = await run_in_threadpool(token_lists, served, body.input, "input")
        vectors = await wrap_future(service.engine.embed(served.name, inputs))
        count = sum(map(len, inputs))
        packed = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": i, "embedding": _base64(v) if packed else v} for i, v in enumerate(vectors)
        ]
        return JSONResponse(
            {
                "object": "list",
                "model": served.name,
                "data": data,
                "usage": {"prompt_tokens": count, "total_tokens": count},
            }
        )

    @router.post("/render")
    async def render(body: RenderRequest):
        generation = GenerationRequest(
            body.model,
            messages_of(body.messages),
            Options(),
            tools_of(body.tools),
            template=body.chat_template_kwargs or {},
        )
        text, ids = await run_in_threadpool(service.prompt, generation)
        decode = service.served(body.model).tokenizer.decode
        return JSONResponse({"text": text, "ids": ids, "tokens": [decode([i]) for i in ids]})

    return router


def messages_of(messages: list[Message]) -> list[dict]:
    """Converts messages for the template. Raises Refused for content that is not text."""
    converted = []
    for message in messages:
        calls = [tool_call(c.function.name, c.function.arguments, c.id) for c in message.tool_calls or []]
        fields = {
            "role": "system" if message.role == "developer" else message.role,
            "content": text_of(message.content),
            "reasoning_content": message.reasoning_content,
            "tool_calls": calls or None,
            "tool_call_id": message.tool_call_id,
            "name": message.name,
        }
        converted.append({key: value for key, value in fields.items() if value is not None})
    return converted


def tools_of(tools: list[dict] | None) -> list[dict]:
    """Returns the function tools for the template. Other types of tools are skipped."""
    functions = [t.get("function") for t in tools or [] if t.get("type") == "function"]
    return [
        tool(f["name"], f.get("description"), f.get("parameters"))
        for f in functions
        if isinstance(f, dict) and isinstance(f.get("name"), str)
    ]


def stops_of(stop: Stop) -> tuple[str, ...]:
    return tuple(s for s in ([stop] if isinstance(stop, str) else stop or []) if s)


def choice_of(choice: str | dict | None, tools: list[dict]) -> tuple[str, list[dict]]:
    """Returns tool_choice as auto, none, required or a tool's name, and the tools that may be called. Raises
    Refused."""
    if choice is None or choice in ("auto", "none", "required"):
        return choice or "auto", tools
    try:
        if choice["type"] == "function":
            return _function_name(choice), tools
        if choice["type"] == "allowed_tools":
            allowed = choice.get("allowed_tools", choice)
            names = {_function_name(one) for one in allowed["tools"] if one["type"] == "function"}
            allowed_tools = [t for t in tools if t["function"]["name"] in names]
            if not allowed_tools:
                raise Refused("tool_choice: none of the allowed tools is given", parameter="tool_choice")
            if allowed["mode"] in ("auto", "required"):
                return allowed["mode"], allowed_tools
        raise TypeError(choice)
    except (AttributeError, KeyError, TypeError):  # another form
        raise Refused(
            "tool_choice: give auto, none, required, a function or allowed_tools", parameter="tool_choice"
        ) from None


def _function_name(function: dict) -> str:
    """Returns the name of a function in the form of Chat Completions or Responses."""
    name = function.get("function", function)["name"]
    if not isinstance(name, str):
        raise TypeError(name)
    return name


def usage(answers: Answers) -> dict:
    return {
        "prompt_tokens": answers.prompt_tokens,
        "completion_tokens": answers.generated,
        "total_tokens": answers.prompt_tokens + answers.generated,
        "prompt_tokens_details": {"cached_tokens": answers.cached},
        "completion_tokens_details": {"reasoning_tokens": answers.reasoning_tokens},
    }


class AnswerStream(StreamingResponse):
    """Streams answers as server-sent events. Cancels the answers when it ends, even if the client disconnects before
    the first event."""

    def __init__(self, answers: Answers, frames: AsyncIterator[str]):
        super().__init__(frames, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answers = answers

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.cancel()


def problem(error: Refused) -> dict:
    """Returns an error in OpenAI's form."""
    types = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    type_ = types.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": type_, "param": error.parameter, "code": error.code}}


def _model(served: ServedModel) -> dict:
    facts = asdict(served)
    return {"id": facts.pop("name"), "object": "model", "created": 0, "owned_by": "tunesmith", "tunesmith": facts}


def _generation(body: ChatRequest) -> GenerationRequest:
    choice, tools = choice_of(body.tool_choice, tools_of(body.tools))
    messages, prefill = _prefilled(body)
    return GenerationRequest(
        body.model,
        messages,
        body,
        tools,
        choice,
        body.parallel_tool_calls is not False,
        body.form(body.response_format),
        thinking_of(body.reasoning_effort) | (body.chat_template_kwargs or {}),
        prefill,
        body.max_completion_tokens or body.max_tokens,
        stops_of(body.stop),
        (body.top_logprobs or 0) if body.logprobs else None,
        body.n or 1,
        bool(body.stream),
    )


def _prefilled(body: ChatRequest) -> tuple[list[dict], str]:
    """Splits off the last message if it is the beginning of the answer. Returns (messages, prefill). Raises Refused."""
    messages, last = messages_of(body.messages), body.messages[-1]
    wanted = body.continue_final_message or last.prefix
    if body.add_generation_prompt is not None and body.add_generation_prompt == bool(wanted):
        raise Refused(
            "either add_generation_prompt or continue_final_message must be true, and the other false",
            parameter="continue_final_message",
        )
    if not wanted:
        return messages, ""
    if last.role != "assistant" or last.tool_calls or last.reasoning_content:
        raise Refused(
            "continue_final_message: the last message must be the assistant's, with text only",
            parameter="continue_final_message",
        )
    return messages[:-1], messages[-1]["content"]


def heading(prefix: str, model: str) -> dict:
    return {"id": prefix + uuid.uuid4().hex, "created": int(time.time()), "model": model}


def wants_usage(body) -> bool:
    return bool(body.stream_options and body.stream_options.include_usage)


def _message(answer: Answer) -> dict:
    message = {
        "role": "assistant",
        "content": answer.text if answer.text or not answer.calls else None,
        "refusal": None,
    }
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [_call(call) for call in answer.calls]
    return message


def _call(call: Call) -> dict:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _token_logprob(token: str, logprob: float) -> dict:
    # A token that is a part of a character cannot be decoded by itself.
    return {
        "token": token,
        "logprob": max(logprob, -9999.0),
        "bytes": None if "\ufffd" in token else list(token.encode("utf-8", "replace")),
    }


def _logprobs(tokens: list[Token]) -> dict:
    return {
        "content": [
            {**_token_logprob(t.text, t.logprob), "top_logprobs": [_token_logprob(*other) for other in t.top]}
            for t in tokens
        ],
        "refusal": None,
    }


async def _chat_stream(answers: Answers, head: dict, with_usage: bool, logprobs: int | None) -> AsyncIterator[str]:
    def chunk(choices: list[dict], counts: dict | None = None) -> str:
        more = {"usage": counts} if with_usage else {}
        return frame({**head, "object": "chat.completion.chunk", "choices": choices, **more})

    def choice(index: int, delta: dict, finish: str | None = None, scores: dict | None = None) -> dict:
        return {"index": index, "delta": delta, "logprobs": scores, "finish_reason": finish}

    for index in range(len(answers.done)):
        yield chunk([choice(index, {"role": "assistant", "content": ""})])
    try:
        async for index, event in answers.events():
            if isinstance(event, Answer):
                yield chunk([choice(index, {}, event.finish)])
            elif isinstance(event, Call):
                number = answers.done[index].calls.index(event)
                call = _call(event)
                arguments = call["function"].pop("arguments")
                first = {**call, "index": number, "function": {**call["function"], "arguments": ""}}
                yield chunk([choice(index, {"tool_calls": [first]})])
                rest = {"index": number, "function": {"arguments": arguments}}
                yield chunk([choice(index, {"tool_calls": [rest]})])
            elif isinstance(event, Thought):
                yield chunk([choice(index, {"reasoning_content": event.text})])
            else:
                scores = _logprobs(event.tokens) if logprobs is not None else None
                yield chunk([choice(index, {"content": event.text}, scores=scores)])
    except Refused as error:
        yield frame(problem(error))
        return
    if with_usage:
        yield chunk([], usage(answers))
    yield frame("[DONE]")


def token_lists(served, inputs, parameter: str) -> list[list[int]]:
    """Converts texts or ids to lists of ids, with bos if the tokenizer adds it. Raises Refused."""
    if isinstance(inputs, str) or (inputs and isinstance(inputs[0], int)):
        inputs = [inputs]
    tokenizer, lists = served.tokenizer, []
    for one in inputs:
        if isinstance(one, str):
            try:
                ids = tokenizer.encode(one)[0]
            except Exception as error:  # RowProblem: not valid Unicode
                raise Refused(f"{parameter}: {error}", parameter=parameter) from None
            one = [tokenizer.bos_id, *ids] if tokenizer.adds_bos and ids[:1] != [tokenizer.bos_id] else ids
        if not one:
            raise Refused(f"{parameter}: empty", parameter=parameter)
        if not all(0 <= i < tokenizer.vocab_size for i in one):
            raise Refused(f"{parameter}: token ids go from 0 to {tokenizer.vocab_size - 1}", parameter=parameter)
        if len(one) > served.context:
            raise Refused(
                f"{parameter}: {len(one):,} tokens; {served.name} takes {served.context:,}",
                code="context_length_exceeded",
                parameter=parameter,
            )
        lists.append(one)
    if not lists:
        raise Refused(f"{parameter}: empty", parameter=parameter)
    return lists


def _base64(vector: list[float]) -> str:
    """Encodes a vector as little-endian float32 in base64, as OpenAI's API does."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
