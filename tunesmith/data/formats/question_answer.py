"""question_answer: `question` (or `query`) and `answer` (or `answers`, `response`, `chosen`), and optional
`instruction`, `context`, `system`, `history` and `tools`.

Instruction and context come before the question. If there are several answers, also in SQuAD's {text: [...]}, the first
is learned. Answers that are all tool calls, {name, arguments}, become one turn.
"""

from typing import Any

from tunesmith.data.formats._chat import exchange, from_json, has_turns, optional, shown, string
from tunesmith.data.rows import Chat, RowProblem

QUESTIONS = ("question", "query")
ANSWERS = ("answer", "answers", "response", "chosen")


def recognises(sample: dict) -> bool:
    asks, answers = (any(column in sample for column in columns) for columns in (QUESTIONS, ANSWERS))
    return asks and answers and not has_turns(sample)


def to_row(raw: dict) -> Chat:
    parts = [optional(raw, "instruction"), optional(raw, "context"), string(raw, *QUESTIONS)]
    column = next((column for column in ANSWERS if raw.get(column) is not None), ANSWERS[0])
    return exchange(raw, "\n\n".join(filter(None, parts)), _answer(raw.get(column), column))


def _answer(answer: Any, column: str) -> str | dict:
    if column == "answers" and isinstance(answer, str) and answer.lstrip()[:1] in ("[", "{"):
        answer = from_json(answer)
    if isinstance(answer, list) and answer and all(map(_is_call, answer)):
        return {"tool_calls": answer}
    if isinstance(answer, dict):
        answer = answer.get("text")
    if isinstance(answer, list):
        answer = answer[0] if answer else ""
    if not isinstance(answer, str):
        raise RowProblem("wrong_shape", f"{column}: text expected, found {shown(answer)}")
    return answer


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and "name" in value and bool({"arguments", "parameters"} & value.keys())
