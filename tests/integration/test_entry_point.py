"""The command as process 1 of a container and `kubectl exec` meet it: signals, early and late."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import EGRESS_PROXY
from tests.support.needs import do_without
from tests.support.processes import Process

if TYPE_CHECKING:
    from pathlib import Path

P = "EGRESS_DNS_PROXY_"


@pytest.fixture
def environ() -> dict[str, str]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    return {
        f"{P}DESTINATION": f"{port} 127.0.0.1 9",
        f"{P}SOURCE": "any",
        f"{P}LISTEN": "127.0.0.1",
        f"{P}ADMIN_LISTEN": "off",
        f"{P}LOG_FORMAT": "json",
    }


@pytest.mark.parametrize("command", ["run", "hold"])
def test_sigterm_is_handled_before_the_slow_imports(command: str) -> None:
    """Only a process that ignored it would go on to read its (missing) configuration."""
    program = (
        "import builtins, os, signal, sys\n"
        "from egress_proxy import __main__\n"
        "imports = builtins.__import__\n"
        "def imported(name, *rest):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return imports(name, *rest)\n"
        "builtins.__import__ = imported\n"
        "# As process 1, which has no default action.\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"sys.argv = ['egress-proxy', '{command}']\n"
        "sys.exit(__main__.main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


@pytest.mark.parametrize("command", ["run", "check", "signal reload"])
def test_a_hidden_proc_is_one_line(environ: dict[str, str], command: str) -> None:
    hidden = ["unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c"]
    ended = subprocess.run(
        [*hidden, f'mount -t tmpfs none /proc && exec "{EGRESS_PROXY}" {command}'],
        env={**os.environ, **environ, f"{P}LOG_FORMAT": "console"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in ended.stderr:
        do_without(f"user namespaces are not allowed here: {ended.stderr}")
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.endswith("; mount /proc in the container")


def test_signal_reload_and_debug(environ: dict[str, str], tmp_path: Path) -> None:
    """In a process namespace of its own the daemon is process 1, as in a container."""
    probe = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*probe, "true"], capture_output=True, check=False).returncode:
        do_without("user namespaces are not allowed here")
    # The shell becomes process 1's only sibling; it signals once the daemon is ready.
    go = tmp_path / "go"
    os.mkfifo(go)
    script = (
        f'(read _ < {go}; "{EGRESS_PROXY}" signal reload; "{EGRESS_PROXY}" signal debug) '
        f'> {tmp_path}/said 2>&1 & exec "{EGRESS_PROXY}" run'
    )
    with Process([*probe, "/bin/sh", "-c", script], env={**os.environ, **environ}) as proxy:
        proxy.wait_for("daemon.ready")
        go.write_text("\n")
        proxy.wait_for("config.reloaded")
        proxy.wait_for("log.switched", debug=True)
        [child] = children(proxy.pid)
        os.kill(child, signal.SIGTERM)
        assert proxy.wait() == 0
    assert (tmp_path / "said").read_text().splitlines() == [
        (
            "sent SIGHUP to process 1: it reads the destinations again, "
            "see its log for config.reloaded"
        ),
        "sent SIGUSR1 to process 1: it switches the records of connections on or off",
    ]


def children(process: int) -> list[int]:
    """The processes that `process` has started (proc_pid_children(5))."""
    with open(f"/proc/{process}/task/{process}/children", encoding="ascii") as file:  # noqa: PTH123 - a text
        return list(map(int, file.read().split()))
