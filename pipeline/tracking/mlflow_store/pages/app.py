"""MLflow's app with pages for a newcomer who trains networks: an app of the server, as MLflow's plugins are.

MLflow's pages keep what a user has chosen in the browser. On a first visit nothing is chosen: they show the tools for
language models, and on this machine an assistant's panel opens by itself. Here the page sets both beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.metadata import entry_points
from typing import Any

GROUP, NAME, WITH_PASSWORDS = "mlflow.app", "phasecollapse", "phasecollapse-auth"
"""Group of MLflow's entry points for apps, and the names of ours."""
CHOICES = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",  # the panel opens when asked to
    "mlflow.workflowType_v1": '"machine_learning"',
}
"""Names in the browser's local storage → values, for a user who has not chosen yet."""
START = b"<head>"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def name(passwords: bool) -> str | None:
    """The name by which MLflow's server finds the app; None where this program is not installed as it is now."""
    wanted = WITH_PASSWORDS if passwords else NAME
    return wanted if wanted in entry_points(group=GROUP).names else None


def create_app() -> App:
    """MLflow's app, whose page makes the first choices."""
    from mlflow.server.fastapi_app import app

    return FirstChoices(app)


def create_app_with_passwords() -> App:
    """MLflow's app with users and passwords, whose page makes the first choices."""
    from mlflow.server import auth

    return FirstChoices(auth.create_app())


class FirstChoices:
    """An app (ASGI) that adds a script to the page of another one, which MLflow has at the root, or below a prefix.

    Args:
        app: the other one.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].endswith("/"):
            await self._app(scope, receive, send)
            return
        start: Message = {}
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body"):
                return
            body = b"".join(parts)
            if START in body:
                body = body.replace(START, START + script(), 1)
                kept = [(key, value) for key, value in start["headers"] if key.lower() != b"content-length"]
                start["headers"] = [*kept, (b"content-length", str(len(body)).encode())]
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self._app(scope, receive, collect)


def script() -> bytes:
    """The script, which leaves alone what a user has chosen."""
    return (
        "<script>"
        f"for (const [name, value] of Object.entries({json.dumps(CHOICES)}))"
        " try { localStorage.getItem(name) ?? localStorage.setItem(name, value) } catch { }"
        "</script>"
    ).encode()
