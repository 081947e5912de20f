"""What can go wrong with a request to the Kubernetes API, as one tree.

::

    EgressProxyError
    └── ApiError
        ├── ApiConflict           409: another client has changed the object, or it exists already
        ├── ApiRejected           another answer that refuses it; nothing was changed
        ├── ApiTooManyRequests    429: nothing was changed; ask again after `retry_after_s`
        └── ApiUnavailable        no answer, or an unclear one: it may have been applied

An answer of 500 and above is `ApiUnavailable`: etcd's own timeouts come as 500 and 504, after a
write that may still be carried out.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from egress_proxy.errors import EgressProxyError, Problem
from egress_proxy.hold.object_json import decode_status

if TYPE_CHECKING:
    from egress_proxy.hold.http import Answer

# The pause if the server asks for one without a length; and the longest pause that is made.
_DEFAULT_PAUSE_S = 1.0
_MAX_PAUSE_S = 30.0


class ApiError(EgressProxyError):
    """A request to the Kubernetes API failed; `request` is its method and path."""

    def __init__(self, request: str, reason: str, cure: str = "") -> None:
        super().__init__(Problem(variable=request, reason=reason, cure=cure))
        self.request = request
        self.reason = reason


class ApiConflict(ApiError):  # noqa: N818 - "Conflict" is the API's own name for it
    """The object has changed since it was read, or exists already."""


class ApiRejected(ApiError):  # noqa: N818 - as above
    """The API server refused the request with `status`, an HTTP status code."""

    def __init__(self, request: str, status: int, reason: str) -> None:
        super().__init__(request, f"{status}: {reason}", _CURES.get(status, ""))
        self.status = status


class ApiTooManyRequests(ApiError):  # noqa: N818 - as above
    """The API server is busy and asks for a pause of `retry_after_s`."""

    def __init__(self, request: str, retry_after_s: float) -> None:
        super().__init__(request, f"the API server asks to wait {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class ApiUnavailable(ApiError):  # noqa: N818 - as above
    """There was no answer that can be trusted: the request may or may not have been applied."""


_CURES = {
    401: "look at the projected token: its audience, and the clocks of node and API server",
    403: "look at the Role and the RoleBinding of the pod's service account",
}


def error_of(request: str, answer: Answer) -> ApiError:
    """The error that an answer means."""
    status = decode_status(answer.body)
    said = status.message or status.reason or answer.body[:200].decode("utf-8", "replace").strip()
    if answer.status == HTTPStatus.CONFLICT:
        return ApiConflict(request, said)
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        return ApiTooManyRequests(request, _pause_s(answer.headers.get("retry-after", "")))
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ApiUnavailable(request, f"{answer.status}: {said}")
    return ApiRejected(request, answer.status, said)


def _pause_s(retry_after: str) -> float:
    """The pause that a Retry-After asks for; the API server counts seconds (RFC 9110, 10.2.3)."""
    return min(float(retry_after), _MAX_PAUSE_S) if retry_after.isdecimal() else _DEFAULT_PAUSE_S
