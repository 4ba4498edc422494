"""Object storage on this machine, over HTTP as it speaks S3; on request it fails before it answers.

python -m tests.helpers.object_storage [FAILURES]     prints its address, and serves until its input ends

The first FAILURES requests to read each object are answered with 503.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from tests.helpers.checkout import ROOT

BUCKET = "images"
SECRETS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"}


class Storage:
    """A running server, with one bucket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._filesystem = fs.S3FileSystem(
            access_key="someone",
            secret_key="secret",
            region="us-east-1",
            scheme="http",
            endpoint_override=address,
            allow_bucket_creation=True,
        )
        self._filesystem.create_dir(BUCKET)

    def location(self, path: str) -> str:
        """The address of a folder, as a user gives it."""
        options = f"scheme=http&endpoint_override={self.address}&region=us-east-1"
        return f"s3://someone:secret@{BUCKET}/{path}?{options}"

    def without_key(self, path: str) -> str:
        """The same, for those who have the key in their environment."""
        return self.location(path).replace("someone:secret@", "")

    def upload(self, folder: Path, path: str) -> None:
        """Puts a folder's files below `path`."""
        for file in folder.rglob("*"):
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                with self._filesystem.open_output_stream(f"{BUCKET}/{path}/{name}") as stream:
                    stream.write(file.read_bytes())


@contextmanager
def object_storage(failures: int = 0) -> Iterator[Storage]:
    """A server of its own, in a process of its own; the test is skipped where moto is not installed."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("needs moto's server: pip install 'moto[server]'")
    command = [sys.executable, "-W", "ignore", "-m", "tests.helpers.object_storage", str(failures)]
    root = ROOT
    with subprocess.Popen(
        command,
        cwd=root,
        env=os.environ | SECRETS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdin and server.stdout
        try:
            yield Storage(server.stdout.readline().strip())
        finally:
            server.stdin.close()


class _Unreliable:
    """A WSGI application that lets another one answer each path only after some failures."""

    def __init__(self, application: Callable[..., Iterable[bytes]], failures: int) -> None:
        self._application = application
        self._failures = failures
        self._failed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        with self._lock:
            fails = environ["REQUEST_METHOD"] == "GET" and self._failed[path] < self._failures
            self._failed[path] += fails
        if fails:
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        return self._application(environ, start_response)


def main(failures: int) -> None:
    """Serves, on a free port of this machine alone."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = _Unreliable(DomainDispatcherApplication(create_backend_app), failures)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"127.0.0.1:{server.port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]))
