"""The probes that show whether an exported model is the trained one."""

from dataclasses import dataclass

import numpy as np

from tunesmith.export.parity.samples import CAPITALS, DECOMPOSED, LEADING, TEXTS, Conversation, conversations
from tunesmith.finetune.prepared import Prepared
from tunesmith.run import Run

ROWS = 64  # of the run's own, for losses and answers
POSITIONS = 512  # whose logits are compared, over all rows
GENERATED = 16  # answers, where all rows' answers are not part of the run's measure


@dataclass
class Probes:
    """`rows`: (ids, supervised) each; `prompts` and `references` of the same rows. `texts` each follow a special token,
    as all text of a conversation does."""

    texts: list[str]
    conversations: list[Conversation]
    rows: list[tuple[np.ndarray, np.ndarray]]
    prompts: list[list[int]]
    references: list[str]
    source: str
    max_new_tokens: int
    exact_match: bool


def most_tokens(run: Run) -> int:
    """Returns the most tokens of a row, or of a prompt with its answer."""
    return run.plan.sequence_length + run.recipe.evaluate.max_new_tokens


def probes_of(run: Run) -> Probes:
    """From the run's held-out rows, or from those it learned where none are held out."""
    prepared, recipe = Prepared.open(run), run.recipe
    tokenizer, data = prepared.tokenizer, prepared.dataset
    tokens, source = (data.eval, "held-out rows") if len(data.eval) else (data.train, "training rows")
    rows, pairs = range(min(ROWS, len(tokens))), []
    exact_match = recipe.evaluate.exact_match and bool(len(data.eval))
    if recipe.method.has_answers:
        pairs = [tokens.prompt_and_answer(n) for n in rows][: None if exact_match else GENERATED]
    ends = sorted(tokenizer.special_tokens, key=len, reverse=True)
    samples = (*TEXTS, *LEADING, *CAPITALS, *DECOMPOSED, *(f"a user types {token} here" for token in ends))
    texts = [tokenizer.anchor + text for text in samples]
    return Probes(
        texts,
        conversations(ends),
        [tokens.first_sequence(n) for n in rows],
        [list(map(int, p)) for p, _ in pairs],
        [tokenizer.decode(list(map(int, a)), skip_special_tokens=True) for _, a in pairs],
        source,
        recipe.evaluate.max_new_tokens,
        exact_match,
    )
