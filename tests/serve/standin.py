"""A small server with the APIs that the chat page and `tunesmith connect` use. Its fields control its answers."""

import json
import mimetypes
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tunesmith.studio.page import CHAT_PAGE, STATIC

MODELS = [
    {
        "id": "base-1b",
        "object": "model",
        "tunesmith": {"kind": "base", "base": "base-1b", "context": 65536, "tools": True},
    },
    {
        "id": "my-run",
        "object": "model",
        "tunesmith": {"kind": "tuned", "base": "base-1b", "context": 65536, "tools": True},
    },
]
CALL = ("get_weather", {"city": "Paris"})


class StandIn(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = json.loads(json.dumps(MODELS))
        self.pieces: dict[str, list[str]] = {}  # by model
        self.thoughts: list[str] = []  # before them
        self.hold_after: int | None = None  # pieces, until the gate opens
        self.gate = threading.Event()
        self.endless = False
        self.finish = "stop"
        self.left = threading.Event()  # the client closed the connection before the end
        self.key: str | None = None
        self.failure: tuple[int, str] | None = None
        self.calls_tool = self.calls_streamed = True
        self.says = "It is sunny."
        self.asked: list[tuple[str, dict]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self, path: str) -> list[dict]:
        return [body for asked, body in self.asked if asked == path]

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.gate.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.path == "/v1/models":
            return self.refused() or self.reply({"object": "list", "data": self.server.models})
        file = CHAT_PAGE if self.path == "/" else STATIC / self.path.lstrip("/")
        if not file.is_file():
            return self.reply({"error": {"message": f"nothing at {self.path}"}}, 404)
        self.head(200, mimetypes.guess_type(file.name)[0])
        self.wfile.write(file.read_bytes())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        if self.refused():
            return
        if self.path == "/render":
            words = [word for message in body["messages"] for word in (f"<{message['role']}>", message["content"])]
            self.reply({"text": " ".join(words), "ids": [1000 + i for i in range(len(words))], "tokens": words})
        elif "tools" in body or self.path != "/v1/chat/completions" or not body.get("stream"):
            calls = "tools" in body and (self.server.calls_streamed if body.get("stream") else self.server.calls_tool)
            answer = (EVENTS if body.get("stream") else ANSWERS)[self.path](None if calls else self.server.says)
            self.stream_of(answer) if body.get("stream") else self.reply(answer)
        else:
            self.stream(body)

    def refused(self) -> bool:
        wanted = self.server.key
        if wanted and self.headers["Authorization"] != f"Bearer {wanted}":
            self.reply({"error": {"message": "wrong key"}}, 401)
            return True
        if self.server.failure and self.command == "POST":
            status, message = self.server.failure
            self.reply({"error": {"message": message}}, status)
            return True
        return False

    def stream(self, body: dict):
        self.head(200, "text/event-stream")
        pieces = self.server.pieces.get(body["model"], ["Hello", " from ", body["model"]])
        try:
            for thought in self.server.thoughts:
                self.event({"choices": [{"index": 0, "delta": {"reasoning_content": thought}}]})
            for at, piece in enumerate(pieces):
                if at == self.server.hold_after:
                    self.server.gate.wait(30)
                self.event({"choices": [{"index": 0, "delta": {"content": piece}}]})
            while self.server.endless and not self.server.gate.wait(0.02):
                self.event({"choices": [{"index": 0, "delta": {"content": " more"}}]})
        except OSError:
            self.server.left.set()
            return
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": self.server.finish}]})
        self.event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(pieces)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def stream_of(self, events: list[dict]):
        self.head(200, "text/event-stream")
        for event in events:
            self.event(event)
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data: dict):
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def reply(self, data: dict, status: int = 200):
        self.head(status, "application/json")
        self.wfile.write(json.dumps(data).encode())

    def head(self, status: int, kind: str):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()


# Each gives a tool call if there is no text.


def chat_answer(text: str | None) -> dict:
    function = {"name": CALL[0], "arguments": json.dumps(CALL[1])}
    message = {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}
    return {"choices": [{"index": 0, "message": message if text is None else {"content": text}}]}


def responses_answer(text: str | None) -> dict:
    call = {"type": "function_call", "call_id": "1", "name": CALL[0], "arguments": json.dumps(CALL[1])}
    said = {"type": "message", "content": [{"type": "output_text", "text": text}]}
    return {"output": [call if text is None else said]}


def messages_answer(text: str | None) -> dict:
    call = {"type": "tool_use", "id": "1", "name": CALL[0], "input": CALL[1]}
    return {"content": [call if text is None else {"type": "text", "text": text}]}


# The same as events; arguments come in pieces.


def chat_events(text: str | None) -> list[dict]:
    deltas = [{"content": text}]
    if text is None:
        first = {"index": 0, "id": "1", "function": {"name": CALL[0], "arguments": ""}}
        deltas = [
            {"tool_calls": [first]},
            *({"tool_calls": [{"index": 0, "function": {"arguments": c}}]} for c in json.dumps(CALL[1])),
        ]
    return [*({"choices": [{"index": 0, "delta": delta}]} for delta in deltas), {"choices": [], "usage": {}}]


def responses_events(text: str | None) -> list[dict]:
    (item,) = responses_answer(text)["output"]
    return [
        {"type": "response.created"},
        {"type": "response.output_item.done", "item": item},
        {"type": "response.completed"},
    ]


def messages_events(text: str | None) -> list[dict]:
    (block,) = messages_answer(text)["content"]
    key, written = ("text", text) if text is not None else ("partial_json", json.dumps(block.pop("input")))
    return [
        {"type": "message_start"},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *({"type": "content_block_delta", "index": 0, "delta": {key: c}} for c in written),
        {"type": "message_stop"},
    ]


EVENTS = {"/v1/chat/completions": chat_events, "/v1/responses": responses_events, "/v1/messages": messages_events}
ANSWERS = {"/v1/chat/completions": chat_answer, "/v1/responses": responses_answer, "/v1/messages": messages_answer}
