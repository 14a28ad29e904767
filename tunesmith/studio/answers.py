"""Answers: the studio asks a server and writes what comes into the answer's file, whether or not a page reads it."""

import asyncio
import fcntl
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import httpx

from tunesmith.errors import UserError
from tunesmith.files import json_text
from tunesmith.run import new_locked, try_lock
from tunesmith.serve.registry import Entry
from tunesmith.studio import servers
from tunesmith.studio.conversations import Answer, is_locked, read_answer, read_events
from tunesmith.studio.state import Studio

SECONDS_BETWEEN_LOOKS = 0.05  # at the file of an answer that a page follows
LOCK_ATTEMPTS = 40


class Answering:
    """The answers that are being written by this studio."""

    def __init__(self, studio: Studio):
        self._studio = studio
        self._client = servers.client()
        self._tasks: dict[Path, asyncio.Task[None]] = {}

    def begin(self, file: Path, entry: Entry, body: dict[str, Any]) -> None:
        """Starts an answer to a request of OpenAI's API. Raises UserError if its file cannot be written."""
        opened = new_locked(file)
        if opened is None:
            raise UserError(f"{file}: cannot be written and locked")
        _write(opened, server=entry.id, model=body["model"])
        self._run(file, self._answer(opened, entry, body))

    async def resume(self, file: Path, before: Answer, entry: Entry, body: dict[str, Any]) -> None:
        """Continues an answer that has ended; `body` asks for what follows. Raises UserError if its file cannot be
        written, or is being written."""
        opened = await _reopened(file)
        _write(opened, server=entry.id, resumed=True)
        self._run(file, self._answer(opened, entry, body, before))

    def _run(self, file: Path, answer: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(answer)
        self._tasks[file] = task
        task.add_done_callback(lambda _: self._tasks.pop(file, None))

    async def stop(self, file: Path) -> None:
        """Stops an answer, and with it the server's work on it. One that has ended stays as it is."""
        if task := self._tasks.get(file):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def close(self) -> None:
        """Stops all answers."""
        for file in [*self._tasks]:
            await self.stop(file)
        await self._client.aclose()

    async def follow(self, file: Path, offset: int) -> AsyncIterator[str]:
        """Server-sent events with the lines of an answer's file from an offset on, until its end. The id of each is
        the offset behind it."""
        while not self._studio.stopping.is_set():
            is_writing = is_locked(file)  # first, as it may end meanwhile
            try:
                events, behind = read_events(file, offset)
            except UserError:
                return  # it was deleted
            if events:
                offset = behind
                yield f"id: {offset}\ndata: {json_text(_joined(events))}\n\n"
            if events and "end" in events[-1]:
                return
            if not is_writing:
                yield f"id: {offset}\ndata: {json_text({'end': {'state': read_answer(file).state}})}\n\n"
                return
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    async def _answer(self, file: IO[bytes], entry: Entry, body: dict[str, Any], before: Answer | None = None) -> None:
        """Writes an answer to its end. The counts of one that continues include those of the part before."""
        began = time.monotonic()
        end: dict[str, Any] = {"state": "stopped"}
        try:
            async for event in self._events(entry, body):
                if problem := event.get("error"):
                    end = {"state": "failed", "detail": str(problem["message"])}
                    break
                for choice in event.get("choices", []):
                    delta = choice.get("delta") or {}
                    _write(file, text=delta.get("content"), reasoning=delta.get("reasoning_content"))
                    if choice.get("finish_reason"):
                        end |= {"state": "done", "detail": choice["finish_reason"]}
                if usage := event.get("usage"):
                    end |= {"prompt_tokens": usage["prompt_tokens"], "tokens": usage["completion_tokens"]}
                    if before:
                        end |= {"prompt_tokens": before.prompt_tokens, "tokens": end["tokens"] + (before.tokens or 0)}
            else:
                if end["state"] == "stopped":
                    end = {"state": "failed", "detail": "the server ended before the answer did"}
        except (ValueError, KeyError, TypeError, AttributeError):
            end = {"state": "failed", "detail": "the server's answer is not of this API"}
        except (httpx.ConnectError, httpx.ConnectTimeout):
            end = {"state": "failed", "detail": "the server cannot be reached"}
        except httpx.TransportError:
            end = {"state": "failed", "detail": "the server ended before the answer did"}
        finally:
            seconds = time.monotonic() - began + ((before and before.seconds) or 0)
            _write(file, end=end | {"seconds": round(seconds, 2)})
            file.close()

    async def _events(self, entry: Entry, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {entry.key}"} if entry.key else {}
        url = f"{entry.local_url}/v1/chat/completions"
        async with self._client.stream("POST", url, json=body, headers=headers) as answer:
            if answer.status_code != 200:
                await answer.aread()
                yield {"error": {"message": _problem(answer)}}
                return
            async for line in answer.aiter_lines():
                data = line.removeprefix("data: ")
                if data != line and data != "[DONE]":
                    yield json.loads(data)


async def _reopened(file: Path) -> IO[bytes]:
    """An answer's file with a lock on it, at its end. Raises UserError."""
    try:
        opened = file.open("ab", buffering=0)
        for _ in range(LOCK_ATTEMPTS):  # a reader may hold the lock for a moment
            if try_lock(opened, fcntl.LOCK_EX):
                opened.write(b"\n")  # ends the line that a killed studio may have left
                return opened
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        opened.close()
    except OSError:
        pass
    raise UserError(f"{file}: cannot be written and locked")


def _problem(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code} {answer.reason_phrase}"


def _write(file: IO[bytes], **values: Any) -> None:
    """Writes one line with those values that there are."""
    if kept := {name: value for name, value in values.items() if value}:
        file.write(json_text(kept).encode("utf-8", "replace") + b"\n")


def _joined(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Several lines as one, so that a page which comes late has no thousand small ones. An end before the last line is
    none: the answer was continued."""
    joined: dict[str, Any] = {}
    for event in events:
        joined.pop("end", None)
        for name, value in event.items():
            joined[name] = joined[name] + value if name in ("text", "reasoning") and name in joined else value
    return joined
