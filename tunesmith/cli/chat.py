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
    seed: Annotated[int, Parameter(validator=Number(gte=-(2**63), lt=2**63))] = 0,
    cpu: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Chat with a run's result. `/base` and `/tuned` switch the model, `/system` sets the system prompt, `/new` starts
    a new conversation, `/quit` ends. Ctrl-C stops an answer.

    Args:
        run: The run's name or folder.
        base: Start with the base model.
        system: The system prompt, or none. By default the most frequent one in the training rows.
        max_new_tokens: Length limit of an answer, in tokens.
        temperature: The sampling temperature; 0 is greedy decoding.
        seed: The seed of sampling.
        cpu: Compute on the CPU, also if there is a GPU.
    """
    from tunesmith.cli.chat_session import talk
    from tunesmith.run import Run

    talk(Run.open(run), base, system, max_new_tokens, temperature, seed, cpu)
