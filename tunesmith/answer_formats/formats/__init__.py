"""Answer formats, found by their module's name here and in other packages by the entry point group
tunesmith.answer_formats.

Each has `find(tokenizer)`: the Format (answer_formats/format.py) of a chat template, or None where the template writes
another one.
"""
