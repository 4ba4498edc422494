"""Proxies of the environment: addresses of this machine are never reached through one."""

from __future__ import annotations

from collections.abc import MutableMapping

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
EXCEPTIONS = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


def except_loopback(environment: MutableMapping[str, str]) -> None:
    """Adds this machine to the addresses that are reached directly, if there is a proxy.

    requests, urllib and gRPC send a request for MLflow's server or Ray's processes on this machine to the proxy of the
    environment otherwise, which answers it with an error, or not at all.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in PROXIES):
        return
    for name in EXCEPTIONS:
        there = environment.get(name) or (environment.get("no_proxy") or environment.get("NO_PROXY") or "")
        listed = [one.strip() for one in there.split(",") if one.strip()]
        if "*" not in listed:
            environment[name] = ",".join([*listed, *(one for one in LOOPBACK if one not in listed)])
