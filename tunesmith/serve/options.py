"""The sampling options that the requests of all APIs share."""

from pydantic import BaseModel, ConfigDict, Field


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
