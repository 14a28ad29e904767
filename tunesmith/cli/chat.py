"""`tunesmith chat`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from tunesmith.cli.parameters import AtLeastOne


def chat(
    run: Path,
    *,
    base: bool = False,
    system: str | None = None,
    max_new_tokens: AtLeastOne = 512,
    temperature: Annotated[float, Parameter(validator=Number(gte=0, lte=2))] = 0.0,
    seed: int = 0,
) -> None:
    """Talk to a run's result. `/base` and `/tuned` switch the model, `/system` sets the system prompt, `/new` starts
    over, `/quit` ends. Ctrl-C stops an answer.

    Args:
        run: The run's name or folder.
        base: Start with the base model.
        system: The system prompt, or none; by default the one that most training rows had.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always gives the likeliest answer.
        seed: Of the sampling.
    """
    from tunesmith.cli.chat_session import talk
    from tunesmith.run import Run

    talk(Run.open(run), base, system, max_new_tokens, temperature, seed)
