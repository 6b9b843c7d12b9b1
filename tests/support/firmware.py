"""
A firmware repository for tests, and a server that shows of it what an attacker likes.

    makers = Makers(tmp_path)                     # root keys 2 of 3
    makers.release("2.0", b"…")                   # published
    with showing(makers.public) as server:        # server.url, server.folder, server.endless
        …
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from csmdb.firmware_repository import FirmwareRepository
from wire.firmware import Target

VENDOR, MODEL, TEMPLATE = "Hearthgrid", "RM-1", "hearthgrid-rm1"


def target(version: str, **facts: Any) -> Target:
    known = {
        "vendor": VENDOR, "model": MODEL, "version": version, "template": TEMPLATE,
        "installs_by": "registers",
    }  # fmt: skip
    return Target(**{**known, **facts})


class Makers:
    """Who makes firmware: a repository and its offline keys."""

    def __init__(self, folder: Path, ago: timedelta = timedelta()) -> None:
        self.folder = folder / "csmdb"
        self.files = folder / "files"
        self.files.mkdir(parents=True)
        self.drawers = [folder / f"drawer-{n}" for n in range(3)]
        self.root = self.repository(ago).init(self.drawers)

    @property
    def public(self) -> Path:
        return self.folder / "firmware"

    def repository(self, ago: timedelta = timedelta()) -> FirmwareRepository:
        """As it would be opened so long ago; a negative time is in the future."""
        return FirmwareRepository(self.folder, datetime.now(UTC) - ago)

    def release(
        self, version: str, content: bytes, *, ago: timedelta = timedelta(), **facts: Any
    ) -> str:
        """Add and publish; gives the file's name."""
        file = self.files / f"{MODEL}-{version}.bin"
        file.write_bytes(content)
        repository = self.repository(ago)
        repository.add(file, target(version, **facts))
        repository.publish(self.drawers)
        return file.name


class Shown(ThreadingHTTPServer):
    """A folder over HTTP; paths in `endless` never stop."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endless: set[str] = set()
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Shown)
        if not any(self.path.endswith(name) for name in self.server.endless):
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x" * 65_536)
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def showing(public: Path) -> Iterator[Shown]:
    """Serve a copy of a repository's folder, which the test may spoil."""
    folder = public.parent / "shown"
    shutil.copytree(public, folder, dirs_exist_ok=True)
    server = Shown(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
