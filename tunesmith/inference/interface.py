"""The engine interface: the types of a request and of its answer, and the protocol of an engine.

An engine serves `models` (by name, in order). `submit` puts a request in the queue and returns at once; `deliver` is
called from the engine's own thread with pieces of the answer, the last of which says how it finished.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.inference.gguf_tokenizer import GgufTokenizer
from tunesmith.inference.loaded_model import Weights

CONTEXT = 8


class Refused(Exception):
    """A request that is not answered; `status` is that of HTTP, `code` the word for programs."""

    def __init__(self, message: str, status: int = 400, code: str | None = None, parameter: str | None = None):
        super().__init__(message)
        self.message, self.status, self.code, self.parameter = message, status, code, parameter


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 takes the most likely token; `top_k` 0 and `top_p` 1 keep all."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class Form:
    """The requested form of an answer. `value`: for json a JSON Schema, of choice a list of texts, else a regular
    expression, or a grammar (GBNF or Lark), as text."""

    kind: Literal["json", "regex", "choice", "grammar"]
    value: Any


class Constraint(Protocol):
    """Returns before each token which ids are allowed (a boolean tensor [V]), and receives the chosen id."""

    def allowed(self): ...

    def accept(self, token: int) -> None: ...


class Constraints(Protocol):
    """A grammar that answers keep to: `lark` is its text in llguidance's notation, and a call makes a Constraint."""

    lark: str

    def __call__(self) -> Constraint: ...


@dataclass(frozen=True)
class Request:
    """One answer to compute. `ids` is the prompt; `logprobs` how many of the most likely tokens to report beside the
    drawn one, None for no log probabilities; `shown` are special tokens that stay in the text; `stream` asks for
    pieces as they come instead of one at the end; `continues`: the answer continues a text, so that a space
    before its first word belongs to it."""

    model: str
    ids: list[int]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    shown: frozenset[int] = frozenset()
    stream: bool = True
    constraint: Constraints | None = None
    continues: bool = False

    @property
    def context(self) -> list[int]:
        """The ids before the answer that its text depends on."""
        return self.ids[-CONTEXT:] if self.continues else []


@dataclass(frozen=True)
class Token:
    """A token, its natural log probability (None for the first of a prompt, which has none), and the most likely tokens
    in its place as (text, log probability)."""

    text: str
    logprob: float | None
    top: list[tuple[str, float]]


@dataclass
class Piece:
    """The next part of an answer. `finish` is None except in the last piece: stop, length, cancelled or error.
    `stop_text` is the stop string that ended it; `stop_token` the token, if log probabilities are reported. `generated`
    counts the tokens computed so far with the stop token, `cached` those of the prompt from the prefix cache."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    stop_text: str | None = None
    stop_token: Token | None = None
    error: str = ""
    generated: int = 0
    cached: int = 0


class Ticket(Protocol):
    """A request in the engine."""

    def cancel(self) -> None:
        """Stops computing before the next step. The last piece says `cancelled`."""


class Engine(Protocol):
    """The interface."""

    description: list[str]
    """For people, a line for each copy of weights: the software, the device, the precision and the capacity."""
    models: dict
    device_bytes: dict[str, int | None]
    """Bytes of weights, keys and values on each device, by its name in leases.py. None: unknown."""
    capacity: int
    """Most requests that may be in the engine at once, computed or waiting."""

    def submit(self, request: Request, deliver: Callable[[Piece], None]) -> Ticket:
        """Raises Refused: 429 where the queue is full."""

    def embed(self, model: str, inputs: list[list[int]]):
        """A Future of one vector (list of floats) for each input: its tokens' mean last hidden state, of length 1."""

    def score(self, model: str, ids: list[int], logprobs: int):
        """A Future of a Token for each id: how likely the model takes it to be after those before it, and so many of
        the most likely tokens in its place."""

    def metrics(self) -> dict[str, float]:
        """Counters and gauges by name."""

    def close(self) -> None:
        """Cancels what is left and waits for the engine's thread."""


@dataclass(frozen=True)
class Served:
    """One name that requests may ask for. `kind` is tuned or base; `base` the name of its base; `defaults` are the
    model's own generation settings; `context` counts tokens, prompt and answer together. `weights` are those in this
    process, with the name of the `adapter` to switch them to; None where another process has them."""

    name: str
    kind: str
    base: str
    tokenizer: Tokenizer | GgufTokenizer
    stop_ids: frozenset[int]
    defaults: dict
    context: int
    weights: Weights | None = None
    adapter: str | None = None
