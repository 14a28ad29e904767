"""The sampling options of a request, and the engine's sampling settings that follow from them."""

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.inference.interface import Refused, Sampling, Served

COLDEST = 1e-3  # a lower temperature means greedy decoding


class Wire(BaseModel):
    """The base of request models. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Options(Wire):
    """Sampling options. The model's generation_config gives the values that a request omits."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None


def sampling_of(served: Served, options: Options, number: int = 0) -> Sampling:
    """Returns the sampling settings of answer `number`: the request's, else the model's defaults. Raises Refused."""
    own = served.defaults
    default = own.get("temperature") or 1.0 if own.get("do_sample") else 0.0
    temperature = default if options.temperature is None else options.temperature
    seed = None if options.seed is None else (options.seed + number) % 2**63
    bias = _bias(options.logit_bias or {}, served.tokenizer.vocab_size)
    penalty = _first(options.repetition_penalty, own.get("repetition_penalty"), 1.0)
    common = {
        "repetition_penalty": penalty,
        "frequency_penalty": options.frequency_penalty or 0.0,
        "presence_penalty": options.presence_penalty or 0.0,
        "logit_bias": bias,
        "seed": seed,
    }
    if temperature < COLDEST:
        return Sampling(**common)
    return Sampling(
        temperature=temperature,
        top_k=max(0, _first(options.top_k, own.get("top_k"), 0)),
        top_p=_first(options.top_p, own.get("top_p"), 1.0),
        min_p=_first(options.min_p, own.get("min_p"), 0.0),
        **common,
    )


def _first(*values):
    return next(value for value in values if value is not None)


def _bias(biases: dict[str, float], vocab_size: int) -> dict[int, float]:
    wrong = [key for key in biases if not (key.isascii() and key.isdigit() and int(key) < vocab_size)]
    if wrong:
        raise Refused(f"logit_bias: {wrong[0]!r} is not a token id below {vocab_size}", parameter="logit_bias")
    return {int(key): value for key, value in biases.items()}
