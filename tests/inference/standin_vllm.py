"""A small program in vLLM's place that speaks the part of vLLM 0.32 that Tunesmith relies on, as the real one was seen
to: it answers with the prompt's ids again and again. A token is a byte. Requests are noted in the folder STANDIN_VLLM.
A request's seed, the text to tokenize, or the first token to score says what goes wrong with it. It is run as a script,
without anything of Tunesmith."""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NOTES = Path(os.environ.get("STANDIN_VLLM", ""))
FAILS, DIES, GOES_ON = 1, 2, 3
EOS = 7  # ends an answer unless the request says `ignore_eos`


def received(notes: Path) -> list[tuple[str, dict]]:
    """Returns the path and the body of each POST request."""
    return [tuple(json.loads(line)) for line in (notes / "requests").read_text().splitlines()]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        answers = {"/health": {}, "/version": {"version": "0.32.0"}}
        self.reply(answers.get(self.path), 200 if self.path in answers else 404)

    def do_POST(self):
        if self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            return self.reply({"error": "Unauthorized"}, 401)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(NOTES / "requests", "a") as file:
            file.write(json.dumps([self.path, body]) + "\n")
        if self.path == "/tokenize":
            return self.tokenize(body)
        if body["max_tokens"] > 1000:
            return self.reply({"error": {"message": "max_tokens cannot be greater than max_model_len"}}, 400)
        if body.get("prompt_logprobs") is not None:
            if body["prompt"][0] == DIES:
                self.die()
            return self.reply({"choices": [{"prompt_logprobs": self.scores(body), "token_ids": body["prompt"][:1]}]})
        if not body.get("stream"):
            return self.reply({"choices": [self.whole(body)]})
        self.head(200, "text/event-stream")
        try:
            self.answer(body)
        except OSError:
            (NOTES / "left").touch()

    def tokenize(self, body: dict):
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        if text == "refused":
            return self.reply({"error": {"message": "the template raised\nat line 1", "code": 400}}, 400)
        if text == "fails":
            return self.reply({"error": {"message": "no memory is left", "code": 500}}, 500)
        if text == "fails without a message":
            print("(APIServer pid=1) ValueError: it has no message", flush=True)
            return self.reply({"detail": "Not Found"}, 404)
        if text == "dies":
            self.die()
        self.reply({"tokens": list(text.encode())})

    def whole(self, body: dict) -> dict:
        """An answer that is not streamed, in which a logit bias forces its token."""
        source = [int(token) for token in body.get("logit_bias", ())] or body["prompt"]
        ids = [source[number % len(source)] for number in range(body["max_tokens"])]
        ends = ids.index(EOS) + 1 if EOS in ids else None
        return {"token_ids": ids[:ends], "finish_reason": "stop" if ends else "length", "logprobs": None}

    def die(self):
        print("(EngineCore pid=1) ERROR 11-25 01:17:22 [core.py:1] RuntimeError: the GPU is gone", flush=True)
        print("(APIServer pid=1) RuntimeError: Engine core failed. See root cause above.", flush=True)
        os._exit(1)

    def scores(self, body: dict) -> list:
        """Of each token of the prompt but the first: it is the likeliest but for those after it in the vocabulary."""
        return [
            None,
            *(
                {
                    str(token): {"logprob": -2.0, "rank": 3},
                    **{
                        str(token + 1 + i): {"logprob": -1.0 - i / 4, "rank": i + 1}
                        for i in range(body["prompt_logprobs"])
                    },
                }
                for token in body["prompt"][1:]
            ),
        ]

    def answer(self, body: dict):
        for number in range(body["max_tokens"]):
            token = body["prompt"][number % len(body["prompt"])]
            finish = "stop" if token in body["stop_token_ids"] else None
            finish = "length" if finish is None and number + 1 == body["max_tokens"] else finish
            told = None
            if body["logprobs"] is not None:
                top = {f"token_id:{token}": -2.0}
                top |= {f"token_id:{token + 1 + i}": -1.0 - i / 4 for i in range(body["logprobs"])}
                told = {"tokens": [f"token_id:{token}"], "token_logprobs": [-2.0], "top_logprobs": [top]}
            self.event(
                {
                    "choices": [
                        {
                            "index": 0,
                            "text": "not looked at",
                            "logprobs": told,
                            "finish_reason": finish,
                            "stop_reason": None,
                            "token_ids": [token],
                        }
                    ]
                }
            )
            if body["seed"] == FAILS:
                return self.event({"error": {"message": "no memory is left", "code": 400}})
            if body["seed"] == DIES:
                self.die()
            if body["seed"] == GOES_ON:
                time.sleep(0.02)
            if finish:
                break
        self.event({"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": 7}}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data: dict):
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def reply(self, data: dict | None, status: int = 200):
        self.head(status, "application/json")
        self.wfile.write(json.dumps(data).encode())

    def head(self, status: int, kind: str):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()


def main():
    arguments = sys.argv[1:]
    (NOTES / "arguments").write_text(json.dumps(arguments))
    (NOTES / "pid").write_text(str(os.getpid()))
    subprocess.Popen(["sleep", "600"])  # as vLLM's own processes, it does not end by itself
    if "not-a-dtype" in arguments:
        sys.exit("(APIServer pid=1) ValueError: no such dtype")
    port = int(arguments[arguments.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
