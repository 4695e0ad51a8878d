"""As much of the Hugging Face hub's protocol as its libraries need to find and stream a repository, on loopback.

Every name is the repository in one folder, but for `gated/...` and `missing/...`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSED = {"gated": (403, "GatedRepo"), "missing": (404, "RepoNotFound")}


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, *words: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in self.path.split("?")[0].strip("/").split("/")]
        owner = parts[2 if parts[0] == "api" else 1 if parts[0] in ("datasets", "models") else 0]
        if owner in REFUSED:
            status, code = REFUSED[owner]
            self._answer(status, b"refused", {"X-Error-Code": code})
        elif "resolve" in parts:
            self._file(self.folder / "/".join(parts[parts.index("resolve") + 2 :]))
        elif parts[0] == "api" and "tree" in parts:
            self._tree(self.folder / "/".join(parts[parts.index("tree") + 2 :]))
        elif parts[:2] in (["api", "datasets"], ["api", "models"]):
            names = [{"rfilename": path.relative_to(self.folder).as_posix()} for path in self.folder.rglob("*.*")]
            card = {"license": "odc-by"}
            facts = {"private": False, "gated": False, "downloads": 0, "tags": []}
            self._json({"id": "/".join(parts[2:4]), "sha": COMMIT, "cardData": card, "siblings": names, **facts})
        else:
            self._answer(404, b"")

    def _tree(self, folder: Path) -> None:
        entries = []
        for path in sorted(folder.iterdir()):
            entry: dict[str, Any] = {"path": path.relative_to(self.folder).as_posix(), "oid": "0" * 40, "size": 0}
            if path.is_file():
                entry |= {"type": "file", "size": path.stat().st_size}
            entries.append({"type": "directory", **entry})
        self._json(entries)

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            self._answer(206, part, headers)
        else:
            self._answer(200, content, headers)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """A hub whose repositories all hold the files of `folder`; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"folder": folder}))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
