"""The built pages: files that a server hands out. Their sources are in web/."""

from pathlib import Path

STATIC = Path(__file__).parent / "static"
CHAT_PAGE = STATIC / "chat.html"
