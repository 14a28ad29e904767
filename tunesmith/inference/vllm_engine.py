"""vLLM as the engine: `vllm serve` in a process of its own, one base model with any number of LoRA adapters.

Prompts and answers travel as token ids. Their text, its end and all counts are therefore the same as with the built-in
engine.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from threading import Lock, Thread

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError, first_line
from tunesmith.inference.interface import Piece, Refused, Request, Served, Token
from tunesmith.inference.text_stream import Delivery
from tunesmith.inference.vllm_client import Completion, VllmClient, VllmError
from tunesmith.inference.vllm_process import Child


class Answer:
    """A request that vLLM computes. See interface.Ticket."""

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
            self.delivery.end("error", error.summary if isinstance(error, VllmError) else first_line(error))
        else:
            self.delivery.end(task.result())

    async def _compute(self) -> str:
        """Returns how the answer ended."""
        stop_ids, finish = self.served.stop_ids, None
        if self.request.constraint is not None:
            # vLLM writes the EOS token where the grammar allows nothing more.
            stop_ids = stop_ids | {self.served.tokenizer.eos_id} - {None}
        async with aclosing(self.engine.client.stream(self.request, stop_ids)) as parts:
            async for part in parts:
                self.delivery.cached = part.cached
                finish = part.finish or finish
                if self._take(part) == "stop" and finish is None:
                    return "stop"
        return finish

    def _take(self, part: Completion) -> str | None:
        """Returns how the answer ends with this part, or None."""
        ended = None
        for number, token in enumerate(part.ids):
            is_stop_token = part.finish == "stop" and number == len(part.ids) - 1
            scored = None
            if part.logprobs is not None:
                scored = _scored(self.served.tokenizer, token, part.logprobs[number], self.request.logprobs)
            ended = ended or self.delivery.take(token, is_stop_token, scored)
        return ended


class VllmEngine:
    """See interface.Engine. One thread talks to the process, with a task for each answer. vLLM itself decides which
    ones it computes at once, at most `batch`; `queue` more may wait."""

    def __init__(
        self, models: dict[str, Served], arguments: Sequence[str], batch: int, queue: int, say: Callable[[str], None]
    ):
        """Waits until it serves. Raises UserError."""
        self.models, self._batch, self.capacity = models, batch, batch + queue
        self.counts: Counter[str] = Counter()
        self.answers: set[Answer] = set()
        self.child = Child(arguments, "vllm.log")
        self.device_bytes = self.child.device_bytes
        self.client = VllmClient(self.child)
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
            self._require_running()
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
        with self._lock:
            self._require_running()
            return asyncio.run_coroutine_threadsafe(self._score(model, ids, logprobs), self.loop)

    def _require_running(self) -> None:
        if self._refusal is not None:
            raise Refused(*self._refusal)

    async def _score(self, model: str, ids: list[int], logprobs: int) -> list[Token]:
        try:
            places = await self.client.prompt_logprobs(model, ids, logprobs)
        except VllmError as error:
            raise Refused(error.summary, 502, "engine_failed") from None
        tokenizer = self.models[model].tokenizer
        scored = [_scored(tokenizer, token, place, logprobs) for token, place in zip(ids[1:], places, strict=True)]
        return [Token(tokenizer.decode(ids[:1]), None, []), *scored]

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
        finally:
            self.loop.close()
            self.child.close()

    async def _main(self, say: Callable[[str], None]) -> None:
        tasks = [asyncio.ensure_future(self._serve(say)), asyncio.ensure_future(self._closing.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await self._finish()

    async def _serve(self, say: Callable[[str], None]) -> None:
        """Returns when vLLM has ended."""
        try:
            await self.client.start(say)
            version = await self.client.version()
        except Exception as error:
            self._started.set_exception(UserError(f"--engine vllm: {error}") if isinstance(error, VllmError) else error)
            return
        self._started.set_result(
            f"vLLM {version} in a process of its own ({self.child.pid}); its log is {self.child.log}"
        )
        await self.child.wait()

    async def _finish(self) -> None:
        """Ends everything. If the engine is closed, answers are cancelled; else they fail as their connections do."""
        closing, ended = self._closing.is_set(), f"vLLM has ended: {self.child.reason()}"
        with self._lock:
            self._refusal = ("the server is stopping", 503, "stopping") if closing else (ended, 503, "engine_ended")
        await asyncio.sleep(0)  # every submitted answer has its task now
        for answer in self.answers if closing else ():
            answer.task.cancel()
        await self.child.stop()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
        await self.client.close()


def _scored(tokenizer: Tokenizer, token: int, logprobs: dict[int, float], count: int) -> Token:
    """`logprobs` also has the token itself, which need not be among the `count` most likely ones."""
    most_likely = sorted(logprobs.items(), key=lambda item: -item[1])[:count]
    return Token(
        tokenizer.decode([token]), logprobs[token], [(tokenizer.decode([one]), value) for one, value in most_likely]
    )
