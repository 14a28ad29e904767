"""What is learned. One file a method, found by its name, also in other packages by the entry point group
tunesmith.methods.

A method has `encode(tokenizer, row, settings) -> list[Example]`, where settings is the recipe's `Method`, and
`splits: bool`: whether an example that is too long is cut into several, as text is, or is a too-long row.
"""

from tunesmith.registry import Registry

METHODS = Registry(__name__, "tunesmith.methods")
