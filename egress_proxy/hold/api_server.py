"""How to reach the Kubernetes API server: address, certificate authority, token.

The files come from a projected volume, in which the kubelet replaces them: a token is valid for an
hour or less. They are read again when they have changed; while they can't be read, the previous
content stays in use.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from egress_proxy.errors import PlatformError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where Kubernetes mounts the token, the authority and the namespace of a service account.
MOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# A bearer token is about 1 KiB, an authority's certificates a few; in octets.
_MAX_FILE = 1024 * 1024
_CURE = "mount the service account's token and ca.crt into this container"


class WatchedFile:
    """A file's text, read again whenever the file is another one or has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._text = ""

    def read(self) -> str:
        """The text. Raises OSError or ValueError only if it has never been readable."""
        try:
            found = self.path.stat()
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen != self._seen:
                self._text = self._load(found.st_size)
                self._seen = seen
        except (OSError, ValueError):
            if self._seen is None:
                raise
        return self._text

    def _load(self, size: int) -> str:
        if size > _MAX_FILE:
            raise ValueError(f"larger than {_MAX_FILE} octets")
        text = self.path.read_text(encoding="ascii", errors="ignore")
        if not text.strip():
            raise ValueError("empty")
        return text


@dataclass(frozen=True, slots=True)
class ApiServer:
    """The API server of one cluster.

    `host` is an address or a name, `source` the address that requests come from, empty for any.
    """

    host: str
    port: int
    source: str
    token_file: WatchedFile
    authority_file: WatchedFile

    @classmethod
    def in_cluster(
        cls, environ: Mapping[str, str], *, source: str = "", mount: Path = MOUNT
    ) -> ApiServer:
        """From the pod's environment and files. Raises `PlatformError` with all that is missing."""
        host = environ.get("KUBERNETES_SERVICE_HOST", "").strip().strip("[]")
        port = environ.get("KUBERNETES_SERVICE_PORT", "443").strip()
        server = cls(
            host=host,
            port=int(port) if port.isdecimal() else 0,
            source=source if _same_family(host, source) else "",
            token_file=WatchedFile(mount / "token"),
            authority_file=WatchedFile(mount / "ca.crt"),
        )
        problems = list(server._problems(port))
        if problems:
            raise PlatformError(*problems)
        return server

    def _problems(self, port: str) -> list[Problem]:
        problems = []
        if not self.host:
            problems.append(
                Problem(
                    variable="KUBERNETES_SERVICE_HOST",
                    reason="not set",
                    cure="run in a pod: the kubelet sets it",
                )
            )
        if not 0 < self.port < 1 << 16:
            problems.append(
                Problem(variable="KUBERNETES_SERVICE_PORT", value=port, reason="not a port")
            )
        for file, read in (
            (self.token_file, self.authorization),
            (self.authority_file, self.tls),
        ):
            try:
                read()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                problems.append(Problem(variable=str(file.path), reason=reason, cure=_CURE))
        return problems

    @property
    def authority(self) -> str:
        """What the ``Host`` header says (RFC 9110, section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def authorization(self) -> str:
        """The ``Authorization`` header, with the token as it is now."""
        return f"Bearer {self.token_file.read().strip()}"

    def tls(self) -> ssl.SSLContext:
        """How a new connection checks the server, with the authority as it is now."""
        context = ssl.create_default_context(cadata=self.authority_file.read())
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Python 3.13 asks for extensions that the certificates of many clusters lack (RFC 5280's
        # authority key identifier); no other Kubernetes client does.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


def _same_family(host: str, source: str) -> bool:
    """Whether `source` can be bound to reach `host`; a name's addresses may be of any family."""
    try:
        return ipaddress.ip_address(host).version == ipaddress.ip_address(source).version
    except ValueError:
        return False
