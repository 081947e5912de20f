"""The installed command with a standard error that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

P = "EGRESS_DNS_PROXY_"
COMMAND = f"{sys.executable} -m egress_proxy"


def status_of(script: str, **environ: str) -> int:
    command = ["/bin/sh", "-c", script]
    # Buffered, as a pod's: what is left in a buffer is written when Python exits.
    env = os.environ | environ | {"PYTHONUNBUFFERED": ""}
    return subprocess.run(command, env=env, timeout=30, check=False).returncode


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", ">&- 2>&-", ">/dev/full 2>&1"])
@pytest.mark.parametrize("log_format", ["", "json"])
def test_the_exit_status_does_not_depend_on_it(redirection: str, log_format: str) -> None:
    environ = {f"{P}LOG_FORMAT": log_format, f"{P}DESTINATION": "80 localhost"}
    assert status_of(f"{COMMAND} run {redirection}", **environ) == 2
    environ[f"{P}DESTINATION"] = "80 192.0.2.1"
    # No such interface.
    assert status_of(f"{COMMAND} run {redirection}", **environ, EGRESS_INTERFACE="no0") == 1


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_a_warning_does_not_keep_it_from_starting(redirection: str) -> None:
    # `check --offline` writes the same warning.
    environ = {f"{P}DESTINATION": "80 192.0.2.1", f"{P}DESTINATIONS": "80 192.0.2.1"}
    assert status_of(f"{COMMAND} check --offline {redirection}", **environ) == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_socket_gets_the_number_of_a_standard_descriptor(closed: str) -> None:
    program = (
        "import os, socket; from egress_proxy.failures import fill_standard_descriptors as fill; "
        "fill(); os._exit(socket.socket().fileno())"
    )
    assert status_of(f"{sys.executable} -c '{program}' {closed}") == 3
