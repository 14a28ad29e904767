"""Questions and answers about the standard library, for training and, in other words, for evaluation.

Every fact is trained in the phrasings of TRAIN and asked in those of EVAL, which training never sees: what is
measured is whether the model learned the fact, not whether it remembers a question.
"""

import ast
import asyncio
import builtins
import itertools
import json
import math
import os.path
import select
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tunesmith.demo.corpus import MODULES, Definition, Entry, entries, parsed
from tunesmith.run import replacing

TRAIN = {
    "module": [
        "Which module is {name} in?",
        "Where is {name} defined?",
        "{name} belongs to which module?",
        "From which module do I import {name}?",
        "I need {name}. What do I import?",
        "What module has {name}?",
        "Name the module of {name}.",
        "Which part of the standard library provides {name}?",
        "I want to use {name}; which module should I load?",
        "What is the home of {name}?",
        "Tell me where to find {name}.",
        "Python has {name}, but in which module?",
        "To use {name}, import what?",
        "Where does {name} live?",
        "A program of mine uses {name}. Which import is missing?",
        "I saw {name} in a script. Where does it come from?",
        "Do you know which module {name} is part of?",
        "Please name the module that contains {name}.",
        "There is {name} in this file. What must be imported?",
        "Someone told me about {name}. In what module would I look?",
        "Could you tell me what to import before calling {name}?",
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
        "I do not know {name}. What is its purpose?",
        "Say briefly what {name} does.",
        "What is the purpose of {name}?",
        "Summarize {name}.",
        "Tell me what {name} is for.",
        "I saw {name} in a script. What does it mean?",
        "Someone told me about {name}. What is it good for?",
        "Could you explain {name} to me?",
        "Please describe {name} in a sentence.",
        "When do I need {name}?",
        "How would you sum up {name}?",
        "Why would a program call {name}?",
        "Define {name} in short.",
    ],
}
EVAL = {
    "module": ["My code calls {name}. What module goes into the import line?",
               "Can you say which module defines {name}?"],
    "summary": ["What would I use {name} for?", "Give me the point of {name} in a few words."],
}
NUMBER = {"module": 160, "summary": 40}
MOST_WORDS = 7

# Modules that also have names people know, and whose own sources (C, or a folder of files) corpus does not read.
OTHERS = (asyncio, builtins, itertools, math, os.path, select, sys, time)


@dataclass(frozen=True)
class Fact:
    """One thing to know. `kind` is a key of TRAIN: module (where `name` is defined) or summary (what it does)."""

    kind: str
    name: str
    answer: str


def facts() -> list[Fact]:
    """The facts of the demo, in a fixed order. No two of a kind ask about the same name."""
    unambiguous = _unambiguous()
    known = [e for e in entries() if e.doc and e.name in unambiguous and e.name != e.module]
    modules = [Fact("module", e.name, e.module) for e in _spread(known, NUMBER["module"])]
    brief = [e for e in known if _is_brief(e)]
    return modules + [Fact("summary", e.name, _summary(e)) for e in _spread(brief, NUMBER["summary"])]


def write(folder: Path) -> tuple[Path, Path]:
    """Writes train.jsonl and eval.jsonl, in OpenAI's messages format, and returns their paths."""
    return _write(folder / "train.jsonl", TRAIN), _write(folder / "eval.jsonl", EVAL)


def _unambiguous() -> set[str]:
    """The names that the standard library defines once, counting methods, aliases and whatever is private."""
    times = Counter(name for module in OTHERS for name in dir(module))
    for module in MODULES:
        tree = parsed(module)
        times.update(node.name for node in ast.walk(tree) if isinstance(node, Definition))
        times.update(target.id for node in tree.body if isinstance(node, ast.Assign)
                     for target in node.targets if isinstance(target, ast.Name))
    return {name for name, number in times.items() if number == 1}


def _spread(found: list[Entry], number: int) -> list[Entry]:
    """The first `number` entries when every module gives its first one, then its second, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for entry in found:
        ranked.append((seen[entry.module], entry))
        seen[entry.module] += 1
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])[:number]]


def _summary(entry: Entry) -> str:
    return entry.doc.partition("\n")[0].strip()


def _is_brief(entry: Entry) -> bool:
    summary = _summary(entry)
    return summary.endswith(".") and summary[0].isupper() and 2 <= len(summary.split()) <= MOST_WORDS


def _write(path: Path, phrasings: dict[str, list[str]]) -> Path:
    with replacing(path) as file:
        for fact in facts():
            for phrasing in phrasings[fact.kind]:
                messages = [
                    {"role": "user", "content": phrasing.format(name=fact.name)},
                    {"role": "assistant", "content": fact.answer},
                ]
                file.write(json.dumps({"messages": messages}) + "\n")
    return path
