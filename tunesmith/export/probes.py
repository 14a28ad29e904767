"""What an exported model is asked so that it shows whether it is the trained one."""

from dataclasses import dataclass

import numpy as np

from tunesmith.inputs import dataset_of, plan_of, tokenizer_of
from tunesmith.run import Run

ROWS = 64  # of the run's own, for losses and answers
POSITIONS = 512  # whose logits are compared, over all rows
GENERATED = 16  # answers, where all rows' answers are not part of the run's measure

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    " one leading space", "   three leading spaces", "trailing spaces   ", "two  spaces   and\ttabs\t\tbetween",
    "\n\nnewlines\n\n\n\nin a row\r\n", "naïve café, smørrebrød, Größe",
    "привет, мир! γειά σου κόσμε. שלום עולם. مرحبا بالعالم",
    "नमस्ते दुनिया, สวัสดีชาวโลก",
    "你好，世界！こんにちは、안녕하세요",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F 1e-9 ½ ² ٣",
    "def f(x):\n    if x > 0:\n\t\treturn {'a': [x, -x]}  # done\n", "I'm you're they'd WE'LL it's 'quoted' \"double\"",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\path\\to", "zero\u200bwidth no\u00a0break soft\u00adhyphen",
    "<html><b>not a token</b></html> [INST] <<SYS>> {{ x }}",
    "supercalifragilisticexpialidocious" * 3, "▁ and ġ",
    "e\u0301 is not \u00e9, and \ufb01 is a ligature", "ÉCOLE Привет Ærø Κόσμε Ġ Ċ",
)  # the last two llama.cpp reads otherwise for some tokenizers
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "Which."}}, "required": ["city"]}}}


@dataclass
class Probes:
    """`rows`: (ids, supervised) each; `prompts` and `references` of the same rows. `texts` each follow a special token,
    as all text of a conversation does."""

    texts: list[str]
    conversations: list[tuple[str, list[dict], list[dict] | None]]
    rows: list[tuple[np.ndarray, np.ndarray]]
    prompts: list[list[int]]
    references: list[str]
    source: str
    max_new_tokens: int
    exact_match: bool


def probes_of(run: Run) -> Probes:
    """From the run's held-out rows, or from those it learned where none are held out."""
    tokenizer, recipe = tokenizer_of(run), run.recipe
    data = dataset_of(run, tokenizer, plan_of(run).sequence_length)
    tokens, source = (data.eval, "held-out rows") if len(data.eval) else (data.train, "training rows")
    rows, pairs = range(min(ROWS, len(tokens))), []
    exact_match = recipe.evaluate.exact_match and bool(len(data.eval))
    if recipe.method.name == "sft":
        pairs = [tokens.prompt_and_answer(n) for n in rows][:None if exact_match else GENERATED]
    ends = sorted(tokenizer.special_tokens, key=len, reverse=True)
    texts = [tokenizer.anchor + text for text in (*TEXTS, *(f"a user types {token} here" for token in ends))]
    return Probes(texts, _conversations(ends), [tokens[n] for n in rows], [list(map(int, p)) for p, _ in pairs],
                  [tokenizer.decode(list(map(int, a)), skip_special_tokens=True) for _, a in pairs], source,
                  recipe.evaluate.max_new_tokens, exact_match)


def _conversations(special: list[str]) -> list[tuple[str, list[dict], list[dict] | None]]:
    user, system = {"role": "user", "content": "What is 2 + 2?"}, {"role": "system", "content": "Be brief. 🙂"}
    answer, more = {"role": "assistant", "content": "It is 4."}, {"role": "user", "content": "  And\n\n3 + 3?  "}
    call = {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}]}
    typed = {"role": "user", "content": f"Repeat: {' '.join(special)} <think>x</think>"}
    return [("one turn", [user], None), ("system", [system, user], None), ("several turns", [user, answer, more], None),
            ("system and several turns", [system, user, answer, more], None), ("special tokens typed", [typed], None),
            ("every script", [{"role": "user", "content": "\n".join(TEXTS[:-2])}], None), ("tools", [user], [TOOL]),
            ("a tool's result", [user, call, {"role": "tool", "name": "get_weather", "content": "12 °C"}], [TOOL])]
