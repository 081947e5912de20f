"""Starts the stand-in for the Kubernetes API server, makes it fail and work again, stops it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.administrator import JSON, Administrator, RefusedError
from tests.support.processes import Process
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from types import TracebackType

    from tests.support.network import Namespace

ROOT = Path(__file__).parent.parent.parent
TOKEN = "token"  # noqa: S105 - opens nothing but a stand-in


def make_certificate(folder: Path, *addresses: str) -> None:
    """An authority and its only certificate in one, as ``ca.crt`` and ``tls.crt``, ``tls.key``."""
    names = ",".join(f"IP:{address}" for address in addresses)
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=throwaway"),
            *("-addext", f"subjectAltName={names}"),
            *("-addext", "keyUsage=critical,keyCertSign,digitalSignature"),
            *("-keyout", folder / "tls.key", "-out", folder / "tls.crt"),
        ],
        check=True,
        capture_output=True,
    )
    (folder / "ca.crt").write_bytes((folder / "tls.crt").read_bytes())


class ApiProcess(Administrator):
    """The stand-in on `address` of `namespace`, or of the machine's own; `folder` is its mount.

    The folder has the files of a service account's mount: ``ca.crt`` and ``token``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        namespace: Namespace | None = None,
    ) -> None:
        self.folder = folder
        self.address = address
        make_certificate(folder, address)
        (folder / "token").write_text(TOKEN)
        module = [sys.executable, "-m", "tests.support.api_server", str(folder), address, str(port)]
        env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
        self._process = (
            Process(module, env=env) if namespace is None else namespace.start(*module, env=env)
        )

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(self._process)
            wait_until((self.folder / "control").exists)
            self.port: int = self.order(port=True)
            undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.__exit__(kind, error, trace)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that tell a pod where the API server is."""
        return {"KUBERNETES_SERVICE_HOST": self.address, "KUBERNETES_SERVICE_PORT": str(self.port)}

    def order(self, **orders: object) -> Any:  # noqa: ANN401 - any JSON
        """Give an order (see `api_server`), and wait until it is carried out."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.folder / "control"))
            control.sendall(json.dumps(orders).encode() + b"\n")
            with control.makefile() as answers:
                return json.loads(answers.readline())

    def requests(self) -> list[dict[str, Any]]:
        """All that was asked so far: client, method, path, query, agent."""
        answer: list[dict[str, Any]] = self.order(requests=True)
        return answer

    def ask(self, method: str, path: str, body: object = None, *, content_type: str = JSON) -> Any:  # noqa: ANN401 - any JSON
        """The answer to a request of the administrator, which no injected fault affects."""
        asked = {"method": method, "path": path, "body": body, "type": content_type}
        answer = self.order(ask=asked)
        if answer["status"] >= 300:
            raise RefusedError(answer["status"], answer["body"])
        return answer["body"]

    def kill(self) -> None:
        """The server is gone: connections are refused."""
        os.kill(self._process.pid, 9)
        self._process.wait()
