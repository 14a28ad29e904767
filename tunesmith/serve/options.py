"""The options of a request, as all APIs share them."""

from pydantic import BaseModel, ConfigDict, Field


class Wire(BaseModel):
    """Fields that are not known are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Options(Wire):
    """How to sample; what is left out comes from the model's generation_config."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
