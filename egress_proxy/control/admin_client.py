"""Asks the daemon that runs in the pod, over its admin port."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING

import msgspec

from egress_proxy.config.run_variables import ADMIN_LISTEN
from egress_proxy.config.variables import Reader
from egress_proxy.errors import PlatformError, Problem
from egress_proxy.telemetry.status import Check, Status  # noqa: TC001 - msgspec reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from egress_proxy.config.run_variables import AdminListen

# The daemon is in the same pod; it answers within milliseconds.
_TIMEOUT_S = 3.0


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """/status.json."""

    ready: tuple[Check, ...]
    status: Status


def read_page(environ: Mapping[str, str]) -> Page:
    """The daemon's own status.

    Raises `ConfigurationError` when ADMIN_LISTEN is wrong, `PlatformError` when there is no answer.
    """
    reader = Reader(environ)
    admin_listen = reader.read(ADMIN_LISTEN)
    reader.raise_problems()
    if admin_listen is None:
        raise PlatformError(
            Problem(
                variable=ADMIN_LISTEN.name,
                value="off",
                reason="there is no admin port to ask",
                cure="remove the variable",
            )
        )
    return fetch(admin_listen)


def fetch(admin_listen: AdminListen) -> Page:
    """The answer of the admin port. Raises `PlatformError`."""
    host, port = _host(admin_listen), admin_listen.port
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/status.json")
        response = connection.getresponse()
        page = msgspec.json.decode(response.read(), type=Page)
    except OSError as error:
        reason = error.strerror or str(error)
    except (http.client.HTTPException, msgspec.MsgspecError):
        reason = "what answers there is not egress-proxy run"
    else:
        return page
    finally:
        connection.close()
    raise PlatformError(
        Problem(
            variable=ADMIN_LISTEN.name,
            value=str(admin_listen),
            reason=f"can't ask {host} port {port}: {reason}",
            cure="check that egress-proxy run is running in this pod with the same value",
        )
    )


def _host(admin_listen: AdminListen) -> str:
    """The address at which it is reached from inside the pod."""
    address = admin_listen.address
    if address is None:
        return "127.0.0.1"
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"  # noqa: PLR2004 - IPv4
    return str(address)
