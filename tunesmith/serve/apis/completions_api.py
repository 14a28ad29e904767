"""OpenAI's Completions API: continues text, and with `echo` and `logprobs` scores it."""

from asyncio import wrap_future
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import Field

from tunesmith.answer_formats.format import Part
from tunesmith.inference.interface import Refused, Request, Token
from tunesmith.serve.answering import Answer, Answers, GenerationRequest, Service
from tunesmith.serve.apis.forms import FormOptions
from tunesmith.serve.apis.openai_api import (
    AnswerStream,
    Stop,
    StreamOptions,
    heading,
    problem,
    stops_of,
    token_lists,
    usage,
    wants_usage,
)
from tunesmith.serve.apis.wire import STREAMED, frame

DEFAULT_TOKENS = 16  # as in OpenAI's API


class CompletionRequest(FormOptions):
    model: str | None = None
    prompt: str | list[int] | list[str] | list[list[int]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=16)
    stop: Stop = None
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    suffix: str | None = None
    response_format: dict | str | None = None


@dataclass
class Echo:
    """The prompt that an answer repeats: its text, and its tokens if they are scored."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)


class AsText:
    """Reads an answer as the text that it is."""

    def push(self, text: str) -> list[Part]:
        return [text]

    def finish(self) -> list[Part]:
        return []


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", responses=STREAMED)
    async def completions(body: CompletionRequest, http: HttpRequest):
        if body.suffix:
            raise Refused("suffix: not supported", parameter="suffix")
        served = service.served(body.model)
        prompts = await run_in_threadpool(token_lists, served, body.prompt, "prompt")
        head = {**heading("cmpl-", served.name), "object": "text_completion"}
        requests = await run_in_threadpool(_requests, service, body, prompts)
        echoes = await _echoes(service, body, prompts)
        if body.max_tokens == 0:
            return _scored(body, head, prompts, echoes)
        answers = Answers(service.engine, requests, [AsText() for _ in requests])
        if body.stream:
            return AnswerStream(answers, _stream(answers, head, echoes, wants_usage(body), body.logprobs))
        done = await answers.collect(http)
        choices = [
            _choice(
                i,
                echo.text + answer.text,
                [*echo.tokens, *answer.tokens, *_ending(answer)],
                answer.finish,
                body.logprobs,
                0 if echo.tokens else len(echo.text),
            )
            for i, (answer, echo) in enumerate(zip(done, echoes))
        ]
        return JSONResponse({**head, "choices": choices, "usage": usage(answers)})

    return router


def _requests(service: Service, body: CompletionRequest, prompts: list[list[int]]) -> list[Request]:
    served = service.served(body.model)
    generation = GenerationRequest(
        body.model,
        [],
        body,
        form=body.form(body.response_format),
        max_new_tokens=body.max_tokens,
        stop=stops_of(body.stop),
        logprobs=body.logprobs,
        n=body.n or 1,
        stream=bool(body.stream),
    )
    if body.max_tokens == 0:
        return []
    constraint = service.constraint(served, generation)
    return [
        request
        for ids in prompts
        for request in service.requests(
            served, ids, generation, constraint=constraint, default_tokens=DEFAULT_TOKENS, continues=True
        )
    ]


async def _echoes(service: Service, body: CompletionRequest, prompts: list[list[int]]) -> list[Echo]:
    """Returns one Echo for each answer, empty if the request has no `echo`."""
    served, count = service.served(body.model), body.n or 1
    if not body.echo:
        return [Echo() for _ in range(len(prompts) * count)]
    decode = served.tokenizer.decode
    scores: list = [[] for _ in prompts]
    if body.logprobs is not None:
        scores = [await wrap_future(service.engine.score(served.name, ids, body.logprobs)) for ids in prompts]
    return [
        Echo(decode(ids, skip_special_tokens=True), tokens)
        for ids, tokens in zip(prompts, scores)
        for _ in range(count)
    ]


def _scored(body: CompletionRequest, head: dict, prompts: list[list[int]], echoes: list[Echo]) -> JSONResponse:
    """Returns answers that only echo the prompt, for `max_tokens: 0`."""
    if body.stream:
        raise Refused("max_tokens: 0 leaves nothing to stream", parameter="max_tokens")
    choices = [_choice(i, echo.text, echo.tokens, "length", body.logprobs, 0) for i, echo in enumerate(echoes)]
    count = sum(map(len, prompts))
    return JSONResponse(
        {**head, "choices": choices, "usage": {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}}
    )


def _ending(answer: Answer) -> list[Token]:
    """Returns the stop token of an answer. It has no text, but clients expect it among the tokens."""
    return [answer.stop_token] if answer.stop_token else []


def _choice(index: int, text: str, tokens: list[Token], finish: str | None, logprobs: int | None, offset: int) -> dict:
    """Returns one choice. `offset` is where its first token begins, in characters. A prompt's first token has no log
    probability."""
    scores = None
    if logprobs is not None:
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        scored = [token if token.logprob is not None else None for token in tokens]
        scores = {
            "tokens": [t.text for t in tokens],
            "token_logprobs": [t and max(t.logprob, -9999.0) for t in scored],
            "top_logprobs": [t and {text: max(value, -9999.0) for text, value in t.top} for t in scored],
            "text_offset": offsets,
        }
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": finish}


async def _stream(
    answers: Answers, head: dict, echoes: list[Echo], with_usage: bool, logprobs: int | None
) -> AsyncIterator[str]:
    more = {"usage": None} if with_usage else {}
    offsets = [len(echo.text) for echo in echoes]
    for index, echo in enumerate(echoes):
        if echo.text:
            choice = _choice(index, echo.text, echo.tokens, None, logprobs if echo.tokens else None, 0)
            yield frame({**head, "choices": [choice], **more})
    try:
        async for index, event in answers.events():
            if isinstance(event, Answer):
                choice = _choice(index, "", _ending(event), event.finish, logprobs, offsets[index])
            else:
                choice = _choice(index, event.text, event.tokens, None, logprobs, offsets[index])
                offsets[index] += len(event.text)
            yield frame({**head, "choices": [choice], **more})
    except Refused as error:
        yield frame(problem(error))
        return
    if with_usage:
        yield frame({**head, "choices": [], "usage": usage(answers)})
    yield frame("[DONE]")
