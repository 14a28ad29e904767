"""What CI asks of the tests themselves."""

from types import SimpleNamespace

import pytest

from tests.conftest import pytest_sessionfinish


@pytest.mark.parametrize(
    ("reason", "allowed", "status"),
    [
        ("needs a GPU", ["needs a GPU"], 0),
        ("needs Chromium: apt install chromium", ["needs a GPU"], 1),
        ("needs Chromium: apt install chromium", ["needs a GPU", "needs Chromium"], 0),
        ("needs Chromium: apt install chromium", None, 0),
    ],
)
def test_a_skip_for_a_reason_that_is_not_allowed_fails_the_run(reason, allowed, status):
    lines, skip = [], SimpleNamespace(nodeid="tests/test_a.py::test_b", longrepr=("a.py", 1, f"Skipped: {reason}"))
    reporter = SimpleNamespace(stats={"skipped": [skip]}, write_line=lambda line, **style: lines.append(line))
    session = SimpleNamespace(
        exitstatus=0,
        config=SimpleNamespace(
            option=SimpleNamespace(allow_skip=allowed), pluginmanager=SimpleNamespace(get_plugin=lambda name: reporter)
        ),
    )
    pytest_sessionfinish(session)
    assert session.exitstatus == status and len(lines) == status
    assert all("tests/test_a.py::test_b" in line and reason in line for line in lines)
