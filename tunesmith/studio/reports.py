"""Shows the report of a run, a page of its own, in a frame or a new tab."""

import secrets

from fastapi.responses import FileResponse

from tunesmith.errors import UserError
from tunesmith.evaluate.report import write_report
from tunesmith.run import Run

# The report is a page of its own with styles in it, and nothing else is allowed in it.
REPORT_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'self'",
}
MOST_REPORTS = 100  # addresses of reports that stay valid


class Reports:
    """Addresses of reports, which a frame or a new tab opens. They cannot send the studio's token, so each address is
    a secret of its own."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    def add(self, run: Run) -> str:
        """Writes the run's report as it is now and returns its address."""
        write_report(run)
        while len(self._runs) >= MOST_REPORTS:
            self._runs.pop(next(iter(self._runs)))
        secret = secrets.token_urlsafe(24)
        self._runs[secret] = run
        return f"reports/{secret}"

    def open(self, secret: str) -> FileResponse:
        if secret not in self._runs:
            raise UserError("this address of a report is no longer valid; open the report from its run")
        return FileResponse(self._runs[secret].report_file, media_type="text/html", headers=REPORT_HEADERS)
