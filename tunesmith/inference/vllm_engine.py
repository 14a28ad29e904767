"""vLLM as the engine: `vllm serve` in a process of its own, one base model with any number of LoRA adapters.

Prompts go there as token ids and answers come back as token ids, so what is text, where it ends and what is counted is
the same as with the engine in this process.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock, Thread

import httpx

from tunesmith.errors import UserError, first_line
from tunesmith.inference.interface import Piece, Refused, Request, Served, Token
from tunesmith.inference.text_stream import Delivery
from tunesmith.inference.vllm_process import Child


class Answer:
    """A request at vLLM. See engine.Ticket."""

    def __init__(self, engine: "VllmEngine", request: Request, deliver: Callable[[Piece], None]):
        self.engine, self.request, self.served = engine, request, engine.models[request.model]
        self.delivery = Delivery(request, self.served.tokenizer, deliver, engine.counts)
        self.task: asyncio.Task | None = None

    def start(self) -> None:
        """In the engine's thread."""
        self.task = asyncio.ensure_future(self._compute())
        self.task.add_done_callback(self._end)

    def cancel(self) -> None:
        with suppress(RuntimeError):  # the engine has closed its loop
            self.engine.loop.call_soon_threadsafe(lambda: self.task.cancel())

    def _end(self, task: asyncio.Task) -> None:
        self.engine.answers.discard(self)
        if task.cancelled():
            self.delivery.end("cancelled")
        elif error := task.exception():
            self.delivery.end("error", self.engine.child.explained(first_line(error)))
        else:
            self.delivery.end(task.result())

    async def _compute(self) -> str:
        """How the answer ended. Leaving closes the connection, at which vLLM stops computing."""
        finish = None
        try:
            async with self.engine.client.stream("POST", "/v1/completions", json=self._body()) as response:
                if response.status_code != httpx.codes.OK:
                    raise RuntimeError(_message(json.loads(await response.aread())))
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise RuntimeError(_message(event))
                    for choice in event["choices"]:
                        finish = choice["finish_reason"]
                        if self._take(choice) == "stop" and finish is None:
                            return "stop"
                    details = (event.get("usage") or {}).get("prompt_tokens_details") or {}
                    self.delivery.cached = details.get("cached_tokens") or 0
        except httpx.TransportError:
            raise RuntimeError(f"vLLM has broken off: {self.engine.child.reason()}") from None
        if finish not in ("stop", "length"):
            raise RuntimeError(f"vLLM has ended the answer: {finish or 'broken off'}")
        return finish

    def _take(self, choice: dict) -> str | None:
        ids, told = choice["token_ids"] or [], choice.get("logprobs")
        ended = None
        for number, token in enumerate(ids):
            ends = choice["finish_reason"] == "stop" and number == len(ids) - 1
            ended = ended or self.delivery.take(token, ends, None if told is None else self._told(told, number))
        return ended

    def _told(self, logprobs: dict, number: int) -> Token:
        """vLLM lists the token among the most likely ones even if it is none of them."""
        decode, count = self.served.tokenizer.decode, self.request.logprobs
        likeliest = sorted(logprobs["top_logprobs"][number].items(), key=lambda item: -item[1])[:count]
        return Token(
            decode([_id(logprobs["tokens"][number])]),
            logprobs["token_logprobs"][number],
            [(decode([_id(name)]), value) for name, value in likeliest],
        )

    def _body(self) -> dict:
        request, sampling = self.request, self.request.sampling
        ends = self.served.stop_ids
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
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "seed": sampling.seed,
            "logit_bias": {str(i): v for i, v in sampling.logit_bias.items()} or None,
        }
        if request.constraint is not None:
            body["structured_outputs"] = {"grammar": request.constraint.lark}
            ends = ends | {self.served.tokenizer.eos_id} - {None}  # with which vLLM ends what the grammar has ended
        return body | {"stop_token_ids": sorted(ends)}


class VllmEngine:
    """See engine.Engine. One thread talks to the process, and a task there to each of its answers; vLLM itself decides
    which it computes at once, `batch` at most. `queue` more may wait."""

    def __init__(
        self, models: dict[str, Served], arguments: Sequence[str], batch: int, queue: int, say: Callable[[str], None]
    ):
        """Waits until it serves. Raises UserError."""
        self.models, self._batch, self.capacity = models, batch, batch + queue
        self.counts: Counter[str] = Counter()
        self.answers: set[Answer] = set()
        self.child = Child(arguments, "vllm.log")
        self.loop = asyncio.new_event_loop()
        self._refusal: tuple[str, int, str] | None = None
        self._lock = Lock()
        self._closing = asyncio.Event()
        self._started: Future[str] = Future()
        self._thread = Thread(target=self._run, args=(say,), name="engine")
        self._thread.start()
        try:
            self.description = [self._started.result()]
        except BaseException:
            self.close()
            raise

    def submit(self, request: Request, deliver: Callable[[Piece], None]) -> Answer:
        answer = Answer(self, request, deliver)
        with self._lock:
            if self._refusal is not None:
                raise Refused(*self._refusal)
            if len(self.answers) >= self.capacity:
                self.counts["refused"] += 1
                raise Refused(f"{self.capacity} requests are here already; try again later", 429, "queue_full")
            self.answers.add(answer)
            self.loop.call_soon_threadsafe(answer.start)
        return answer

    def embed(self, model: str, inputs: list[list[int]]) -> Future:
        raise Refused(
            "vLLM gives no embeddings of a model that it answers with; serve it without --engine vllm",
            code="embeddings_unsupported",
            parameter="model",
        )

    def score(self, model: str, ids: list[int], logprobs: int) -> Future:
        return asyncio.run_coroutine_threadsafe(self._score(model, ids, logprobs), self.loop)

    async def _score(self, model: str, ids: list[int], logprobs: int) -> list[Token]:
        body = {"model": model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": logprobs, "temperature": 0.0}
        response = await self.client.post("/v1/completions", json=body)
        if response.status_code != httpx.codes.OK:
            raise Refused(_message(response.json()), 502, "engine_failed")
        decode = self.models[model].tokenizer.decode
        found = [Token(decode(ids[:1]), None, [])]
        for token, told in zip(ids[1:], response.json()["choices"][0]["prompt_logprobs"][1:]):
            likeliest = sorted(((int(one), value["logprob"]) for one, value in told.items()), key=lambda item: -item[1])
            top = [(decode([one]), value) for one, value in likeliest[:logprobs]]
            found.append(Token(decode([token]), told[str(token)]["logprob"], top))
        return found

    def metrics(self) -> dict[str, float]:
        running = min(len(self.answers), self._batch)
        return {**self.counts, "running": running, "waiting": len(self.answers) - running}

    def close(self) -> None:
        with suppress(RuntimeError):  # closed already
            self.loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def _run(self, say: Callable[[str], None]) -> None:
        try:
            self.loop.run_until_complete(self._main(say))
        except Exception as error:  # raised where the start is awaited
            if not self._started.done():
                self._started.set_exception(error)
        finally:
            self.loop.close()
            self.child.close()

    async def _main(self, say: Callable[[str], None]) -> None:
        child = self.child
        async with child.client() as self.client:
            await child.start()
            try:
                if await child.healthy(self.client, say, self._closing.is_set):
                    version = (await self.client.get("/version")).json()["version"]
                    self._started.set_result(
                        f"vLLM {version} in a process of its own ({child.pid}); its log is {child.log}"
                    )
                    await self._over()
            finally:
                await self._finish()

    async def _over(self) -> None:
        """Waits until vLLM ends or we close."""
        ends = [asyncio.ensure_future(self.child.wait()), asyncio.ensure_future(self._closing.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()

    async def _finish(self) -> None:
        """Ends everything: answers are cancelled if we close, else they fail as their connections do."""
        closing, reason = self._closing.is_set(), self.child.reason()
        failure = self.child.failure("did not start")
        with self._lock:
            self._refusal = (
                ("the server is stopping", 503, "stopping")
                if closing
                else (f"vLLM has ended: {reason}", 503, "engine_ended")
            )
        await asyncio.sleep(0)  # what was submitted has its task now
        tasks = [answer.task for answer in self.answers]
        for task in tasks if closing else []:
            task.cancel()
        await self.child.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._started.done():
            self._started.set_exception(UserError(f"--engine vllm: {failure}"))


def _message(body: dict) -> str:
    """Returns the message of an error response of vLLM."""
    return body["error"]["message"]


def _id(name: str) -> int:
    """Returns the id in vLLM's name of a token."""
    return int(name.removeprefix("token_id:"))
