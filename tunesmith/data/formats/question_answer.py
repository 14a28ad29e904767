"""question_answer: `question` and `answer` (or `answers`, `response`), and optional `context` and `system`.

The context comes before the question. Of several answers, also in SQuAD's {text: [...]}, the first is learned.
"""

from typing import Any

from tunesmith.data.formats._chat import exchange, from_json, has_turns, optional, shown, string
from tunesmith.data.rows import Chat, RowProblem

ANSWERS = ("answer", "answers", "response")


def recognises(sample: dict) -> bool:
    return "question" in sample and any(column in sample for column in ANSWERS) and not has_turns(sample)


def to_row(raw: dict) -> Chat:
    question, context = string(raw, "question"), optional(raw, "context")
    prompt = f"{context}\n\n{question}" if context else question
    column = next((column for column in ANSWERS if raw.get(column) is not None), ANSWERS[0])
    return exchange(optional(raw, "system"), [], prompt, _first(raw.get(column), column))


def _first(answer: Any, column: str) -> str:
    if column == "answers" and isinstance(answer, str) and answer.lstrip()[:1] in ("[", "{"):
        answer = from_json(answer)
    if isinstance(answer, dict):
        answer = answer.get("text")
    if isinstance(answer, list):
        answer = answer[0] if answer else ""
    if not isinstance(answer, str):
        raise RowProblem("wrong_shape", f"{column}: text expected, found {shown(answer)}")
    return answer
