"""The client of a `vllm serve` process. No other module knows vLLM's HTTP API: its paths, its fields, its errors."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass

import httpx

from tunesmith.errors import UserError
from tunesmith.inference.interface import Request
from tunesmith.inference.vllm_process import Child

REPORT_SECONDS = 10.0
# A model folder's own settings must not change the answer.
GREEDY = {"temperature": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}


class VllmError(UserError):
    """vLLM failed or ended. The message names its log; `summary`, for clients of the server, does not."""

    def __init__(self, message: str, summary: str):
        super().__init__(message)
        self.summary = summary


class VllmRefusal(VllmError):
    """vLLM rejects the content of a request."""


@dataclass(frozen=True)
class Completion:
    """An answer, or a part of one. `finish`: stop, length, or None in a part that is not the last. `logprobs`, if
    requested: for each token {id: log-probability} of itself and of the most likely ones in its place. `cached` counts
    the prompt's tokens from the prefix cache."""

    ids: list[int]
    finish: str | None
    logprobs: list[dict[int, float]] | None = None
    cached: int = 0


class VllmClient:
    """Sends requests to a Child. Each raises VllmRefusal if vLLM rejects its content, else VllmError if it fails."""

    def __init__(self, child: Child):
        self._child = child
        self._http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{child.port}",
            timeout=None,
            trust_env=False,
            headers={"Authorization": f"Bearer {child.key}"},
            limits=httpx.Limits(max_connections=None),
        )

    async def start(self, say: Callable[[str], None]) -> None:
        """Starts the process and waits until it answers. `say` receives its messages."""
        await self._child.start()
        reported = time.monotonic()
        while not self._child.ended:
            with suppress(httpx.TransportError):
                if (await self._http.get("/health")).is_success:
                    return
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                say(f"vLLM is starting: {(self._child.lines() or ['no output yet'])[-1]}")
            await asyncio.sleep(0.1)
        raise self._failure("did not start")

    async def version(self) -> str:
        return (await self._json("GET", "/version"))["version"]

    async def tokenize(self, model: str, text: str) -> list[int]:
        """Returns the ids of a text, with no special token added."""
        return await self._tokenize(model, {"prompt": text})

    async def tokenize_conversation(self, model: str, messages: list[dict], tools: list[dict] | None) -> list[int]:
        """Returns the ids of the prompt for the conversation's next answer."""
        messages = [_with_arguments_as_text(message) for message in messages]
        return await self._tokenize(model, {"messages": messages, "tools": tools, "add_generation_prompt": True})

    async def complete(
        self, model: str, ids: Sequence[int], max_tokens: int, logit_bias: dict[int, float] | None = None
    ) -> Completion:
        """Returns the greedy answer."""
        body = _greedy(model, ids, max_tokens) | ({"logit_bias": _bias(logit_bias)} if logit_bias else {})
        answer = await self._json("POST", "/v1/completions", body)
        if answer["choices"][0].get("token_ids") is None:
            raise UserError("this vLLM does not return token ids; update it")
        return _completion(answer)

    async def prompt_logprobs(self, model: str, ids: Sequence[int], count: int) -> list[dict[int, float]]:
        """Returns {id: log-probability} for each token but the first: of the token itself and of the `count` most
        likely ones in its place."""
        body = _greedy(model, ids, 1) | {"prompt_logprobs": count}
        places = (await self._json("POST", "/v1/completions", body))["choices"][0]["prompt_logprobs"]
        return [{int(token): entry["logprob"] for token, entry in place.items()} for place in places[1:]]

    async def stream(self, request: Request, stop_ids: Iterable[int]) -> AsyncGenerator[Completion, None]:
        """Yields the answer in parts. Closing the generator closes the connection, at which vLLM stops computing."""
        finish = None
        async with self._response("POST", "/v1/completions", _streamed(request, stop_ids)) as response:
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise self._error(event["error"].get("code", 500), event["error"]["message"])
                part = _completion(event)
                finish = part.finish or finish
                yield part
        if finish not in ("stop", "length"):
            raise self._failure("has ended the answer", finish or "broken off")

    async def close(self) -> None:
        """Closes the connections. The process is not ended."""
        await self._http.aclose()

    async def _tokenize(self, model: str, content: dict) -> list[int]:
        body = {"model": model, "add_special_tokens": False} | content
        return (await self._json("POST", "/tokenize", body))["tokens"]

    async def _json(self, method: str, path: str, body: dict | None = None) -> dict:
        async with self._response(method, path, body) as response:
            return json.loads(await response.aread())

    @asynccontextmanager
    async def _response(self, method: str, path: str, body: dict | None) -> AsyncIterator[httpx.Response]:
        """Yields a response whose content is still to be read."""
        try:
            async with self._http.stream(method, path, json=body) as response:
                if response.is_error:
                    raise self._error(response.status_code, _message(await response.aread()))
                yield response
        except httpx.TransportError:
            raise self._failure("has broken off") from None

    def _error(self, status: int, message: str) -> VllmError:
        """Returns the error for an HTTP status and vLLM's message, which may be empty."""
        reason = self._child.explained(message.strip().partition("\n")[0])
        if status == httpx.codes.BAD_REQUEST:
            return VllmRefusal(f"vLLM refuses the request: {reason}", reason)
        return self._failure(f"answers with status {status}", reason)

    def _failure(self, event: str, reason: str | None = None) -> VllmError:
        """`reason`: by default the last error in the log."""
        summary = f"vLLM {event}: {reason or self._child.reason()}"
        return VllmError(f"{summary} (its log is {self._child.log})", summary)


def _message(content: bytes) -> str:
    """Returns the message of an error response, empty if it has none."""
    with suppress(ValueError, LookupError, TypeError):
        return json.loads(content)["error"]["message"]
    return ""


def _greedy(model: str, ids: Sequence[int], max_tokens: int) -> dict:
    return {"model": model, "prompt": list(ids), "max_tokens": max_tokens, **GREEDY}


def _streamed(request: Request, stop_ids: Iterable[int]) -> dict:
    body = {
        "model": request.model,
        "prompt": request.ids,
        "max_tokens": request.max_new_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "logprobs": request.logprobs,
        "ignore_eos": True,
        "stop_token_ids": sorted(stop_ids),
        **asdict(request.sampling),  # vLLM has the same names
        "logit_bias": _bias(request.sampling.logit_bias) or None,
    }
    if request.constraint is not None:
        body["structured_outputs"] = {"grammar": request.constraint.lark}
    return body


def _bias(logit_bias: dict[int, float]) -> dict[str, float]:
    return {str(token): value for token, value in logit_bias.items()}


def _completion(answer: dict) -> Completion:
    choice = next(iter(answer["choices"]), {})  # the last event of a stream has no choice, only the usage
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    ids, logprobs = choice.get("token_ids") or [], None
    if scores := choice.get("logprobs"):
        places = zip(ids, scores["token_logprobs"], scores["top_logprobs"])
        logprobs = [
            {int(name.removeprefix("token_id:")): value for name, value in top.items()} | {token: own}
            for token, own, top in places
        ]
    return Completion(ids, choice.get("finish_reason"), logprobs, details.get("cached_tokens") or 0)


def _with_arguments_as_text(message: dict) -> dict:
    """Returns a message whose tool calls have their arguments as JSON text, as in OpenAI's API."""

    def with_text(function: dict) -> dict:
        return function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}

    calls = [call | {"function": with_text(call["function"])} for call in message.get("tool_calls", ())]
    return message | ({"tool_calls": calls} if calls else {})
