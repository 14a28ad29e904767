"""What is learned. One file a method, found by its name.

A method has `encode(tokenizer, row, settings) -> list[Example]`, where settings is the recipe's `Method`, and
`splits: bool`: whether an example that is too long is cut into several, as text is, or is a too-long row.
"""

from importlib import import_module
from types import ModuleType


def get(name: str) -> ModuleType:
    """The method's module."""
    return import_module(f"tunesmith.methods.{name}")
