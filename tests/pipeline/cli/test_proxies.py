"""Claims about proxies of the environment."""

from __future__ import annotations

import pytest

from pipeline.cli import proxies

HERE = "localhost,127.0.0.1,::1"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({"no_proxy": "a.example"}, {"no_proxy": "a.example"}),
        ({"http_proxy": "http://p:1"}, dict.fromkeys(proxies.EXCEPTIONS, HERE)),
        ({"HTTPS_PROXY": "http://p:1"}, dict.fromkeys(proxies.EXCEPTIONS, HERE)),
        (
            {"http_proxy": "http://p:1", "NO_PROXY": "a.example, localhost"},
            dict.fromkeys(proxies.EXCEPTIONS, "a.example,localhost,127.0.0.1,::1"),
        ),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, {"no_proxy": "*"}),
    ],
)
def test_this_machine_is_reached_directly_and_all_else_as_before(before: dict[str, str], after: dict[str, str]) -> None:
    environment = dict(before)
    proxies.except_loopback(environment)
    assert environment == {**before, **after}
