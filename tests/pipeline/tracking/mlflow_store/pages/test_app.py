"""Claims about the app of MLflow's pages: its script is in the page and nowhere else."""

from __future__ import annotations

import asyncio
import tomllib
from typing import Any

import pytest

from pipeline.tracking.mlflow_store.pages import app
from pipeline.tracking.mlflow_store.pages.app import CHOICES, FirstChoices, Message
from tests.helpers.checkout import ROOT

PAGE = [b"<!doctype html><html><he", b"ad><title>MLflow</title></head></html>"]


def answer(path: str, parts: list[bytes], status: int = 200) -> tuple[dict[bytes, bytes], bytes, int]:
    """Headers and content of an answer of the app around one that answers with `parts`, and its number of messages."""
    sent: list[Message] = []

    async def inner(scope: Message, receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(sum(map(len, parts))).encode()), (b"etag", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": part is not parts[-1]})

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(FirstChoices(inner)({"type": "http", "method": "GET", "path": path}, None, send))  # type: ignore[arg-type]
    content = b"".join(message.get("body", b"") for message in sent[1:])
    assert sent[0]["status"] == status
    return dict(sent[0]["headers"]), content, len(sent)


@pytest.mark.parametrize("path", ["/", "/mlflow/"])
def test_the_page_makes_the_first_choices(path: str) -> None:
    headers, content, _ = answer(path, PAGE)
    assert content == b"".join(PAGE).replace(b"<head>", b"<head>" + app.script())
    assert headers == {b"content-length": str(len(content)).encode(), b"etag": b"1"}
    assert all(name.encode() in content for name in CHOICES)


def test_other_answers_are_passed_on() -> None:
    assert answer("/api/2.0/mlflow/runs/get", PAGE) == ({b"content-length": b"62", b"etag": b"1"}, b"".join(PAGE), 3)
    assert answer("/", [b""], status=304)[:2] == ({b"content-length": b"0", b"etag": b"1"}, b"")


def test_mlflow_finds_the_app() -> None:
    apps = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][app.GROUP]
    for name, factory in ((app.NAME, app.create_app), (app.WITH_PASSWORDS, app.create_app_with_passwords)):
        assert apps[name] == f"{factory.__module__}:{factory.__name__}"
