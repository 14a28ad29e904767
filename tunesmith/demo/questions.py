"""Writes questions and answers about the standard library, for training and evaluation.

Training has many phrasings of every fact. Evaluation uses the phrasings of EVAL, which training never contains, so that
it measures whether the model learned the fact, and not whether it memorised a question.
"""

import ast
import asyncio
import builtins
import itertools
import json
import math
import os.path
import random
import select
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.demo.corpus import MODULES, Definition, Entry, entries, parsed
from tunesmith.files import replaced

# A question is one sentence (DIRECT), or a sentence that names the object (NAMING) and one that asks about it (ASKING).
DIRECT = {
    "module": [
        "Which module is {name} in?",
        "Where is {name} defined?",
        "{name} belongs to which module?",
        "From which module do I import {name}?",
        "What module has {name}?",
        "Name the module of {name}.",
        "Which part of the standard library provides {name}?",
        "What is the home of {name}?",
        "Tell me where to find {name}.",
        "Python has {name}, but in which module?",
        "To use {name}, import what?",
        "Where does {name} live?",
        "Do you know which module {name} is part of?",
        "What comes before the dot in front of {name}?",
        "Under which module is {name} documented?",
        "Help me complete the line: from ... import {name}",
    ],
    "summary": [
        "What does {name} do?",
        "What is {name} for?",
        "Explain {name} in one line.",
        "{name}: what does it do?",
        "Describe {name}.",
        "Say briefly what {name} does.",
        "What is the purpose of {name}?",
        "Summarize {name}.",
        "Tell me what {name} is for.",
        "Could you explain {name} to me?",
        "Please describe {name} in a sentence.",
        "When do I need {name}?",
        "How would you sum up {name}?",
        "Why would a program call {name}?",
        "Define {name} in short.",
        "Do you know what {name} does?",
    ],
}
NAMING = [
    "I need {name}.",
    "I saw {name} in a script.",
    "Someone told me about {name}.",
    "There is {name} in this file.",
    "A program of mine uses {name}.",
    "We work with {name} here.",
    "I do not know {name}.",
    "Take {name}.",
    "I read about {name}.",
    "A colleague mentioned {name}.",
    "This line has {name} in it.",
    "The error names {name}.",
    "I want to use {name}.",
    "My notes say {name}.",
    "The book shows {name}.",
    "He wrote a test of {name}.",
]
ASKING = {
    "module": [
        "Which module is it in?",
        "What do I import?",
        "Where does it come from?",
        "Which import is missing?",
        "What must be imported?",
        "In what module would I look?",
        "Which module has it?",
        "Name its module.",
        "Which module should I load?",
        "Where is it defined?",
        "What is its home?",
        "To which module does it belong?",
        "What do I write after from?",
        "Where can I find it?",
        "Tell me its module.",
        "From where is it imported?",
    ],
    "summary": [
        "What does it do?",
        "What is it for?",
        "Explain it.",
        "Describe it briefly.",
        "What is its purpose?",
        "Sum it up.",
        "What does it mean?",
        "What is it good for?",
        "Tell me what it does.",
        "Define it in short.",
        "Say what it is.",
        "Why would one call it?",
        "How would you explain it?",
        "In a sentence, what is it?",
        "What happens when I call it?",
        "Summarize it for me.",
    ],
}
PHRASINGS = 70  # different phrasings of each fact
# A model this small mistakes any unknown word for the name in question. Most questions therefore contain a few random
# words of the documentation, so that the model learns to look between the backticks.
STRAY_SHARE, MOST_STRAY = 0.7, 3
EVAL = {
    "module": [
        "My code calls {name}. What module goes into the import line?",
        "Can you say which module defines {name}?",
    ],
    "summary": ["What would I use {name} for?", "Give me the point of {name} in a few words."],
}
NUMBER = {"module": 160, "summary": 40}
MOST_WORDS = 7

# Modules with well-known names whose sources (C, or a folder of files) corpus.py does not read.
OTHER_MODULES = (asyncio, builtins, itertools, math, os.path, select, sys, time)


@dataclass(frozen=True)
class Fact:
    """One fact. `kind` is a key of EVAL: module (where `name` is defined) or summary (its purpose)."""

    kind: str
    name: str
    answer: str


def facts() -> list[Fact]:
    """Returns the facts of the demo, in a fixed order. No two facts of a kind have the same name."""
    unambiguous = _unambiguous()
    known = [e for e in entries() if e.doc and e.name in unambiguous and e.name != e.module]
    modules = [Fact("module", e.name, e.module) for e in _spread(known, NUMBER["module"])]
    brief = [e for e in known if _is_brief(e)]
    return modules + [Fact("summary", e.name, _summary(e)) for e in _spread(brief, NUMBER["summary"])]


def write(folder: Path) -> tuple[Path, Path]:
    """Writes train.jsonl and eval.jsonl, in OpenAI's messages format, and returns their paths."""
    words, draw = _stray_words(), random.Random(0)
    return (
        _write(folder / "train.jsonl", lambda kind: _trained(kind, words, draw)),
        _write(folder / "eval.jsonl", EVAL.__getitem__),
    )


def _unambiguous() -> set[str]:
    """Returns the names that the standard library defines once, counting methods, aliases and private names."""
    times = Counter(name for module in OTHER_MODULES for name in dir(module))
    for module in MODULES:
        tree = parsed(module)
        times.update(node.name for node in ast.walk(tree) if isinstance(node, Definition))
        times.update(
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        )
    return {name for name, number in times.items() if number == 1}


def _spread(candidates: list[Entry], number: int) -> list[Entry]:
    """Returns `number` entries, taken from the modules in turn: every module's first entry, then its second, and so
    on."""
    seen: Counter[str] = Counter()
    ranked = []
    for entry in candidates:
        ranked.append((seen[entry.module], entry))
        seen[entry.module] += 1
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])[:number]]


def _summary(entry: Entry) -> str:
    return entry.doc.partition("\n")[0].strip()


def _is_brief(entry: Entry) -> bool:
    summary = _summary(entry)
    return summary.endswith(".") and summary[0].isupper() and 2 <= len(summary.split()) <= MOST_WORDS


def _stray_words() -> list[str]:
    """Returns the words of the documentation's short summaries."""
    words = {word for entry in entries() if _is_brief(entry) for word in _summary(entry).split()}
    return sorted(filter(str.isalpha, words))


def _trained(kind: str, words: list[str], draw: random.Random) -> list[str]:
    """Draws PHRASINGS different training questions for a fact of a kind."""
    questions: dict[str, None] = {}
    while len(questions) < PHRASINGS:
        two = f"{draw.choice(NAMING)} {draw.choice(ASKING[kind])}"
        question = draw.choice([draw.choice(DIRECT[kind]), two]).split(" ")
        if draw.random() < STRAY_SHARE:
            for _ in range(draw.randint(1, MOST_STRAY)):
                question.insert(draw.randrange(len(question)), draw.choice(words))
        questions[" ".join(question)] = None
    return list(questions)


def _write(path: Path, phrasings: Callable[[str], list[str]]) -> Path:
    with replaced(path) as draft, open(draft, "w", encoding="utf-8") as file:
        for fact in facts():
            for phrasing in phrasings(fact.kind):
                messages = [
                    {"role": "user", "content": phrasing.format(name=f"`{fact.name}`")},
                    {"role": "assistant", "content": fact.answer},
                ]
                file.write(json.dumps({"messages": messages}) + "\n")
    return path
