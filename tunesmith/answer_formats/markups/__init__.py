"""Ways to write a tool call between its marks, found by their module's name here and in other packages by the entry
point group tunesmith.tool_markups.

Each has `find(turn, name)`: (start, end, form) of the probe's call of that name in an assistant's turn, or None. `form`
is a CallForm (answer_formats/calls.py).
"""
