"""A studio as a process of its own."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from tunesmith.studio.guard import TOKEN_HEADER


class StudioProcess:
    """`tunesmith studio` in a folder. `environment` goes over that of the test. Started again, it has the same port."""

    def __init__(self, folder: Path, *flags: str, **environment: str):
        self.folder, self.environment = folder, os.environ | environment
        self._flags, self._port = flags, "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tunesmith", "studio", "--no-open", "--port", self._port, *self._flags]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stderr.readline()
        found = re.search(r"(http://\S+:(\d+))/#token=(\S+)", line)
        assert found, line + self.process.stderr.read()
        self.url, self._port, self.token = found.groups()

    def open(self, path: str):
        request = urllib.request.Request(self.url + path, headers={TOKEN_HEADER: self.token})
        return urllib.request.urlopen(request, timeout=30)

    def get(self, path: str):
        with self.open(path) as answer:
            return json.load(answer)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
