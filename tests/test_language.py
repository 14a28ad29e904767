"""The package's prose keeps to the words of CONTRIBUTING.md, "The language"."""

from pathlib import Path

import pytest

from tests.language import problems

PACKAGE = Path(__file__).parent.parent / "tunesmith"

FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_language_is_plain(file):
    assert problems(file) == []


def test_a_banned_word_is_found_with_its_place(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text('"""Of a card.\n\nMade anew."""\n\nx = "a mixture"  # is said to be\n')
    assert [line.partition(":")[2].split(";")[0] for line in problems(file)] == [
        "1: a docstring that starts with 'Of'",
        "1: 'card' in a docstring",
        "3: 'anew' in a docstring",
        "5: 'mixture' in a string",
        "5: 'is said' in a comment",
    ]
