"""The commands as a person or the kubelet meets them: exit status, stderr, termination message."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from egress_proxy import __version__
from egress_proxy.cli import main
from egress_proxy.config import hold_variables, sources
from egress_proxy.config import run_variables as environment
from egress_proxy.config.variables import PREFIX as P
from egress_proxy.failures import shorten
from egress_proxy.init import settings as init_settings

if TYPE_CHECKING:
    from pathlib import Path

    from egress_proxy.config.variables import Variable

INIT = {"EGRESS_SOURCE": "192.0.2.99/24", "EGRESS_GATEWAY": "192.0.2.1"}
RUN = {f"{P}DESTINATION": "80 192.0.2.10"}
NO_SOURCE = "EGRESS_SOURCE: not set; set it to " + sources.SOURCE.meaning
NO_GATEWAY = "EGRESS_GATEWAY: not set; set it to " + sources.GATEWAY.meaning
NO_DESTINATION = (
    f"{P}DESTINATION: no destination; write one per line: <port> <host> [<remote port>]"
)
NO_HOST = (
    f"{P}DESTINATION line 1: 'localhost': a name of a single label; "
    "write it in full, for example localhost.example.com"
)
NO_PORT = f"{P}DESTINATION line 2: '0': the listening port is out of range; use 1 to 65535"
MISSPELT = f"warning: {P}DESTINATIONS: unknown variable, ignored; did you mean {P}DESTINATION?"
MISSPELT_SOURCE = "warning: EGRESS_SOURCES: unknown variable, ignored; did you mean EGRESS_SOURCE?"
GOOD_INIT = "good init the configuration is good"
NO_INIT = "skipped init not validated: EGRESS_SOURCE and EGRESS_GATEWAY are not set"
NO_RUN = f"skipped run not validated: {P}DESTINATION and {P}DESTINATION_FILE are not set"
GOOD_RUN = "good run the configuration is good"
GOOD_HOLD = "good hold the configuration is good"
NO_POD_IP = "skipped hold not validated: POD_IP, which egress-hold has"
NO_IDENTITY = "skipped hold not validated: POD_NAME, POD_NAMESPACE, POD_IP, which egress-hold has"
IDENTITY = {"POD_NAME": "router-1", "POD_NAMESPACE": "egress", "POD_IP": "192.0.2.11"}
HA = {**INIT, **RUN, "EGRESS_HA": "lease"}
# An interface that no machine has: its name is longer than one can be typed by chance.
NO_INTERFACE = "nosuchinterface"


@pytest.fixture
def termination_log(tmp_path: Path) -> Path:
    """As the kubelet leaves it: there, and empty."""
    path = tmp_path / "termination-log"
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("command", "environ", "ended"),
    [
        ("check --offline", {**INIT, **RUN}, (0, [GOOD_INIT, GOOD_RUN], [])),
        ("check --offline", INIT, (0, [GOOD_INIT, NO_RUN], [])),
        ("check --offline", RUN, (0, [NO_INIT, GOOD_RUN], [])),
        (
            "check --offline",
            {},
            (
                2,
                ["failed init 2 problems", "failed run 1 problem"],
                [NO_SOURCE, NO_GATEWAY, NO_DESTINATION],
            ),
        ),
        (
            "check --offline",
            {"EGRESS_SOURCE": "192.0.2.99", f"{P}DESTINATION": "80 localhost\n0 a.example"},
            (
                2,
                ["failed init 1 problem", "failed run 2 problems"],
                [NO_GATEWAY, NO_HOST, NO_PORT],
            ),
        ),
        (
            "check --offline",
            {**INIT, f"{P}DESTINATION": "80 localhost"},
            (2, [GOOD_INIT, "failed run 1 problem"], [NO_HOST]),
        ),
        ("init", {}, (2, [], [NO_SOURCE, NO_GATEWAY])),
        ("run", {}, (2, [], [NO_DESTINATION])),
        ("run", {f"{P}DESTINATION": "80 localhost\n0 a.example"}, (2, [], [NO_HOST, NO_PORT])),
        (
            "check --offline",
            {**INIT, f"{P}DESTINATIONS": "80 a.example"},
            (0, [GOOD_INIT, NO_RUN], [MISSPELT]),
        ),
        (
            "init",
            {"EGRESS_SOURCES": "192.0.2.99"},
            (2, [], [MISSPELT_SOURCE, NO_SOURCE, NO_GATEWAY]),
        ),
        # The misspelt name explains why the right one is empty.
        ("run", {f"{P}DESTINATIONS": "80 a.example"}, (2, [], [MISSPELT, NO_DESTINATION])),
        (
            "check --offline",
            {**RUN, f"{P}DESTINATIONS": "80 a.example"},
            (0, [NO_INIT, GOOD_RUN], [MISSPELT]),
        ),
    ],
)
def test_what_a_command_says(
    command: str,
    environ: dict[str, str],
    ended: tuple[int, list[str], list[str]],
    termination_log: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = ended
    assert main(command.split(), environ=environ, termination_log=termination_log) == status
    told = capsys.readouterr()
    assert [" ".join(line.split()) for line in told.out.splitlines()] == out
    assert told.err.splitlines() == err
    # A person runs check and reads stderr; the commands of containers write the termination
    # message.
    kept = [] if command.startswith("check") else [line for line in err if "warning" not in line]
    assert termination_log.read_text() == "\n".join(kept)


@pytest.mark.parametrize(
    ("environ", "ended"),
    [
        ({**HA, **IDENTITY}, (0, [GOOD_INIT, GOOD_RUN, GOOD_HOLD], [])),
        (HA, (0, [GOOD_INIT, GOOD_RUN, GOOD_HOLD, NO_IDENTITY], [])),
        # As in the container of run, whose logs and status name the pod.
        (
            {**HA, "POD_NAME": "router-1", "POD_NAMESPACE": "egress"},
            (0, [GOOD_INIT, GOOD_RUN, GOOD_HOLD, NO_POD_IP], []),
        ),
        ({**HA, "EGRESS_HA": "off"}, (0, [GOOD_INIT, GOOD_RUN], [])),
        (
            {
                **HA,
                **IDENTITY,
                "POD_IP": "pod",
                "EGRESS_HA_LEASE": "Router",
                "EGRESS_HA_LEASE_DURATION": "1500ms",
                "EGRESS_HA_HANDOVER": "soon",
                "EGRESS_HA_API_SILENCE": "drop",
                "EGRESS_HOLD_ADMIN_LISTEN": "99999",
            },
            (
                2,
                [GOOD_INIT, GOOD_RUN, "failed hold 6 problems"],
                [
                    (
                        "EGRESS_HA_LEASE: 'Router': not a name that Kubernetes allows; write "
                        "lower-case letters, digits and '-', for example egress-router"
                    ),
                    (
                        "EGRESS_HA_LEASE_DURATION: '1500ms': not a number of whole seconds "
                        "from 1 to 60; write for example 2s: the API server and "
                        "the kernel count in seconds"
                    ),
                    (
                        "EGRESS_HA_HANDOVER: 'soon': not a duration; write for example 500ms, "
                        "10s, 1m, 1h or plain seconds"
                    ),
                    "EGRESS_HA_API_SILENCE: 'drop': not a choice; write keep or release",
                    (
                        "EGRESS_HOLD_ADMIN_LISTEN: '99999': not an address and a port; write "
                        ":9154, an address and a port such as 127.0.0.1:9154, or off"
                    ),
                    "POD_IP: 'pod': not an IP address; write for example 192.0.2.10",
                ],
            ),
        ),
        (
            {**HA, "POD_NAME": "Router", "EGRESS_HA_LEASE_DURATION": "0s"},
            (
                2,
                [GOOD_INIT, GOOD_RUN, "failed hold 2 problems"],
                [
                    (
                        "EGRESS_HA_LEASE_DURATION: '0s': not a number of whole seconds from 1 "
                        "to 60; write for example 2s: the API server and "
                        "the kernel count in seconds"
                    ),
                    (
                        "POD_NAME: 'Router': not a name that Kubernetes allows; write "
                        "lower-case letters, digits and '-', for example egress-router"
                    ),
                ],
            ),
        ),
        # The same problem of all commands is one line.
        (
            {**HA, "EGRESS_HA": "vrrp"},
            (
                2,
                ["failed init 1 problem", "failed run 1 problem", "failed hold 1 problem"],
                ["EGRESS_HA: 'vrrp': not a kind of high availability; write lease, or remove it"],
            ),
        ),
    ],
)
def test_check_reads_what_hold_reads(
    environ: dict[str, str],
    ended: tuple[int, list[str], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out, err = ended
    assert main(["check", "--offline"], environ=environ) == status
    told = capsys.readouterr()
    assert [" ".join(line.split()) for line in told.out.splitlines()] == out
    assert told.err.splitlines() == err


def test_check_reports_why_init_and_run_would_fail(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {**INIT, **RUN, "EGRESS_INTERFACE": NO_INTERFACE}
    assert main(["check"], environ=environ) == 1
    told = capsys.readouterr()
    assert [line.partition(" (")[0] for line in told.err.splitlines()] == [
        f"EGRESS_INTERFACE: '{NO_INTERFACE}': no such interface",
    ]
    rows = {" ".join(line.split()) for line in told.out.splitlines()}
    assert {"failed init 1 problem", "failed run 1 problem"} <= rows


def test_a_missing_interface_is_the_environments_failure(
    termination_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {**RUN, "EGRESS_INTERFACE": NO_INTERFACE}
    assert main(["run"], environ=environ, termination_log=termination_log) == 1
    told = capsys.readouterr()
    [line] = told.err.splitlines()
    assert line.startswith(f"EGRESS_INTERFACE: '{NO_INTERFACE}': no such interface (there are ")
    assert line.endswith(f"or set {P}SOURCE to an address, or to any for a trial")
    assert termination_log.read_text() == line
    assert told.out == ""


def test_outside_a_container_no_termination_log_is_made(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    assert main(["run"], environ={}, termination_log=path) == 2
    assert not path.exists()


def test_a_termination_log_that_can_not_be_written_is_left_alone(tmp_path: Path) -> None:
    assert main(["run"], environ={}, termination_log=tmp_path) == 2


def test_an_earlier_message_is_replaced(termination_log: Path) -> None:
    termination_log.write_text("x" * 5000)
    assert main(["run"], environ={}, termination_log=termination_log) == 2
    assert termination_log.read_text() == NO_DESTINATION


@pytest.mark.parametrize(
    "destinations",
    [
        "\n".join(f"{port} localhost" for port in range(1, 1000)),
        "\n".join(f"{port} \N{SNOWMAN}{'ü' * 60}.example" for port in range(1, 1000)),
    ],
)
def test_the_termination_message_has_whole_lines_and_the_number_of_the_others(
    destinations: str, termination_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {f"{P}DESTINATION": destinations}
    assert main(["run"], environ=environ, termination_log=termination_log) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 101
    assert told[-1] == f"{P}DESTINATION: and 899 more problems"
    octets = termination_log.read_bytes()
    assert 3500 < len(octets) <= 4096
    *kept, last = octets.decode().splitlines()
    assert kept == told[: len(kept)]
    assert last == f"… and {101 - len(kept)} more"


@pytest.mark.parametrize("head", ["", "x"])
@pytest.mark.parametrize("tail", ["", "\nsecond"])
def test_a_first_line_that_is_too_long_is_cut_between_characters(head: str, tail: str) -> None:
    line = head + "ü" * 5000
    octets = shorten(line + tail, 4096)
    assert 4000 < len(octets) <= 4096
    told = octets.decode()
    assert told.endswith("ü…")
    assert line.startswith(told[:-1])


@pytest.mark.parametrize(
    ("command", "variables"),
    [("init", init_settings.VARIABLES), ("run", environment.VARIABLES)],
)
def test_help_explains_every_variable(
    command: str,
    variables: tuple[Variable[object], ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    # Whatever the width of the terminal.
    told = capsys.readouterr().out
    words = " ".join(told.split())
    for variable in variables:
        default = "" if variable.default is None else f" [{variable.default or 'empty'}]"
        assert f"\n  {variable.name}{default}\n" in told
        assert variable.meaning in words


def test_help_shows_the_present_value_of_a_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"], environ={**RUN, f"{P}SOURCE": "any"})
    told = capsys.readouterr().out
    assert f"\n  {P}DESTINATION = '80 192.0.2.10'\n" in told
    assert f"\n  {P}SOURCE [auto] = 'any'\n" in told
    assert f"\n  {P}LISTEN [auto]\n" in told


def test_check_shows_the_settings_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--show-settings"], environ={**RUN, f"{P}SOURCE": " any\n"}) == 0
    told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert told[0] == "init:"
    for line in (
        "EGRESS_SOURCE not set",
        "run:",
        f"{P}DESTINATION '80 192.0.2.10'",
        f"{P}SOURCE 'any'",
        f"{P}ADMIN_LISTEN ':9153' (default)",
    ):
        assert line in told
    entries = (environment.VARIABLES, init_settings.VARIABLES, hold_variables.VARIABLES)
    assert len(told) == 3 + sum(map(len, entries))


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({f"{P}DEBUG": "2"}, f"{P}DEBUG on"),
        ({f"{P}DEBUG": ""}, f"{P}DEBUG off (default)"),
        ({f"{P}IDLE_TIMEOUT": "soon"}, f"{P}IDLE_TIMEOUT 'soon' (wrong)"),
        ({f"{P}MAX_CONNECTIONS": "7"}, f"{P}MAX_CONNECTIONS '7'"),
    ],
)
def test_the_settings_are_shown_as_they_take_effect(
    changes: dict[str, str], row: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--show-settings"], environ={**RUN, **changes}) == 0
    assert row in [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_the_default_maximum_is_shown_as_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--show-settings"], environ=RUN) == 0
    assert re.search(
        rf"{P}MAX_CONNECTIONS +[0-9]+ \(from RLIMIT_NOFILE\)\n", capsys.readouterr().out
    )


@pytest.mark.parametrize("command", ["run --help", "check --show-settings", "check --offline"])
def test_a_terminal_without_unicode_gets_escapes(command: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "egress_proxy", *command.split()],
        env={**os.environ, f"{P}DESTINATION": "80 bücher", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == (2 if "--offline" in command else 0)
    assert "80 b\\xfccher" in ended.stdout or "'b\\xfccher'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("closed", [False, True], ids=["full", "closed"])
def test_an_unwritable_stderr_changes_nothing(closed: bool) -> None:
    redirection = "2>&-" if closed else "2>/dev/full"
    ended = subprocess.run(
        ["/bin/sh", "-c", f'exec "{sys.executable}" -m egress_proxy run {redirection}'],
        env={**os.environ, f"{P}DESTINATIONS": "80 a.example", "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, b"")


def test_output_without_a_reader_causes_no_traceback() -> None:
    ended = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -m egress_proxy run --help | true'],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in ended.stderr


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    for line in (
        "init Configure the egress interface.",
        "run Forward connections until SIGTERM.",
        "status Print the state of the egress-proxy run that runs in this pod.",
        "check Validate the configuration, say what init and run would do, and change nothing.",
    ):
        assert line in " ".join(told.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"egress-proxy {__version__}\n"


@pytest.mark.parametrize("command", ["init", "run", "hold", "check", "status", "signal"])
def test_the_version_after_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An image's entry point ends with one."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"egress-proxy {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["stop"], ["run", "now"], ["run", "--offline"]])
def test_a_wrong_command_line_is_a_wrong_configuration(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: egress-proxy" in capsys.readouterr().err


def test_the_module_is_the_command_and_reads_its_own_environment() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "egress_proxy", "check", "--offline"],
        env={**os.environ, f"{P}DESTINATION": "80 localhost"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (
        2,
        (
            "skipped  init  not validated: EGRESS_SOURCE and EGRESS_GATEWAY are not set\n"
            "failed   run   1 problem\n"
        ),
        f"{NO_HOST}\n",
    )


def test_the_daemon_does_not_pay_for_init() -> None:
    # pyroute2 costs 25 MB resident.
    program = (
        "import sys, egress_proxy.cli, egress_proxy.run.daemon, egress_proxy.telemetry.logs\n"
        "sys.exit('pyroute2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
