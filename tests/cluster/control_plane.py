"""The real control plane of a cluster in a network namespace: etcd, kube-apiserver, controllers.

`assets` finds the programs, and builds them where they are not there (``build.sh``). All that
they write goes to a folder: the certificate, the tokens, etcd's data.
"""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from egress_proxy.hold.api_server import ApiServer
from tests.support.administrator import JSON, Administrator, RefusedError
from tests.support.api_process import make_certificate
from tests.support.needs import do_without
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.network import Namespace
    from tests.support.processes import Process

HERE = Path(__file__).parent
PORT = 6443
SERVICE_RANGE = "198.51.100.0/25"
# What the Service "kubernetes" gets: the first one.
SERVICE_ADDRESS = "198.51.100.1"
SERVICE_ACCOUNT = "egress-router"
_ADMIN = "administrator"
# As many namespaces have a service account with a token; tests take them one after the other.
NAMESPACES = tuple(f"egress-{number}" for number in range(100))


@cache
def assets() -> Path:
    """The folder of kube-apiserver and the others; a test without them is skipped or fails."""
    done = subprocess.run([HERE / "build.sh"], capture_output=True, text=True, check=False)
    if done.returncode:
        do_without(f"no kube-apiserver: {done.stderr[-2000:]}")
    return Path(done.stdout.strip())


def token_of(namespace: str) -> str:
    return f"token-of-{namespace}"


class ControlPlane(ExitStack, Administrator):
    """etcd and kube-apiserver in `namespace`, where they serve `address`; files go to `folder`."""

    def __init__(self, namespace: Namespace, address: str, folder: Path) -> None:
        super().__init__()
        self.namespace = namespace
        self.address = address
        self.folder = folder
        with ExitStack() as undo:
            undo.push(self)
            self._write_files()
            self._start_etcd()
            self._start_api_server()
            undo.pop_all()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that tell a pod where the API server is."""
        return {"KUBERNETES_SERVICE_HOST": self.address, "KUBERNETES_SERVICE_PORT": str(PORT)}

    @property
    def kubeconfig(self) -> Path:
        """That of an administrator."""
        return self.folder / "kubeconfig"

    def start_program(
        self, name: str, *arguments: str, namespace: Namespace | None = None
    ) -> Process:
        """Start one of Kubernetes' programs."""
        return self._start(namespace or self.namespace, str(assets() / name), *arguments)

    def start_controllers(self, *names: str) -> None:
        """kube-controller-manager, with these controllers alone."""
        self.start_program(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig}",
            f"--controllers={','.join(names)}",
            f"--root-ca-file={self.folder / 'ca.crt'}",
            *("--leader-elect=false", "--port=0", "--secure-port=0"),
        )

    def start_scheduler(self) -> None:
        self.start_program(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig}",
            *("--leader-elect=false", "--port=0", "--secure-port=0"),
        )

    def mount(self, namespace: str) -> Path:
        """What the service account's volume holds in a pod of `namespace`."""
        made = self.folder / f"mount-{namespace}"
        made.mkdir(exist_ok=True)
        shutil.copy(self.folder / "ca.crt", made)
        (made / "token").write_text(token_of(namespace))
        return made

    def server(self, namespace: str, *, source: str = "") -> ApiServer:
        """The API server as a pod of `namespace` knows it."""
        mount = self.mount(namespace)
        return ApiServer.in_cluster(self.environment, source=source, mount=mount)

    def ask(self, method: str, path: str, body: object = None, *, content_type: str = JSON) -> Any:  # noqa: ANN401 - any JSON
        """The answer to a request of the administrator."""
        request = Request(
            f"https://{self.address}:{PORT}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {_ADMIN}", "Content-Type": content_type},
        )
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))

        def inside() -> bytes:
            try:
                with urlopen(request, timeout=10, context=context) as answer:  # noqa: S310 - ours
                    octets: bytes = answer.read()
                    return octets
            except HTTPError as error:
                with error:
                    raise RefusedError(error.code, error.read().decode()) from error

        octets = self.namespace.call(inside)
        return json.loads(octets) if octets[:1] in (b"{", b"[") else octets.decode()

    def create(self, resource: dict[str, Any], namespace: str = "") -> Any:  # noqa: ANN401 - any JSON
        """Create any object of the kinds that the overlay has; as the server has it then."""
        group = resource["apiVersion"]
        base = f"/api/{group}" if group == "v1" else f"/apis/{group}"
        where = f"{base}/namespaces/{namespace}" if namespace else base
        kind = resource["kind"].lower()
        plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
        return self.ask("POST", f"{where}/{plural}", resource)

    def audited(self, user: str) -> list[dict[str, Any]]:
        """Every request of `user` that the API server has recorded."""
        lines = (self.folder / "audit.log").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if event["user"].get("username") == user]

    def _write_files(self) -> None:
        make_certificate(self.folder, "127.0.0.1", self.address, SERVICE_ADDRESS)
        subprocess.run(
            ["openssl", "genrsa", "-out", self.folder / "service-account.key", "2048"],
            check=True,
            capture_output=True,
        )
        tokens = [f'{_ADMIN},{_ADMIN},{_ADMIN},"system:masters"']
        tokens += [
            f"{token_of(namespace)},system:serviceaccount:{namespace}:{SERVICE_ACCOUNT},{namespace}"
            for namespace in NAMESPACES
        ]
        (self.folder / "tokens.csv").write_text("\n".join(tokens) + "\n")
        policy = {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata"}],
        }
        (self.folder / "audit-policy.json").write_text(json.dumps(policy))
        cluster = {
            "server": f"https://{self.address}:{PORT}",
            "certificate-authority": str(self.folder / "ca.crt"),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": _ADMIN, "user": {"token": _ADMIN}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": _ADMIN}}],
            "current-context": "here",
        }
        self.kubeconfig.write_text(json.dumps(config))

    def _start_etcd(self) -> None:
        found = assets() / "etcd"
        program = str(found) if found.exists() else shutil.which("etcd")
        if program is None:
            do_without("no etcd: install etcd-server")
        self._start(
            self.namespace,
            program,
            f"--data-dir={self.folder / 'etcd'}",
            *("--listen-client-urls=http://127.0.0.1:2379", "--log-level=error"),
            *("--advertise-client-urls=http://127.0.0.1:2379",),
            *("--listen-peer-urls=http://127.0.0.1:2380", "--logger=zap"),
        )

    def _start_api_server(self) -> None:
        keys = self.folder / "service-account.key"
        self.start_program(
            "kube-apiserver",
            *("--etcd-servers=http://127.0.0.1:2379", f"--secure-port={PORT}"),
            *("--bind-address=0.0.0.0", f"--advertise-address={self.address}"),
            f"--tls-cert-file={self.folder / 'tls.crt'}",
            f"--tls-private-key-file={self.folder / 'tls.key'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            *(
                "--authorization-mode=RBAC",
                "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
            ),
            *("--service-account-issuer=https://kubernetes.default.svc",),
            *(f"--service-account-key-file={keys}", f"--service-account-signing-key-file={keys}"),
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--audit-policy-file={self.folder / 'audit-policy.json'}",
            *(f"--audit-log-path={self.folder / 'audit.log'}", "--audit-log-mode=blocking"),
        )
        wait_until(self._ready, timeout_s=60)

    def _ready(self) -> bool:
        try:
            return bool(self.ask("GET", "/readyz") == "ok")
        except (URLError, RefusedError, ConnectionError):
            return False

    def _start(self, namespace: Namespace, *argv: str) -> Process:
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.folder)}
        return self.enter_context(namespace.start(*argv, env=env))
