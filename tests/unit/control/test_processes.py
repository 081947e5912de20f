"""Which process is the daemon, and what is said when there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from egress_proxy.control.processes import choose, is_daemon, read_processes
from egress_proxy.errors import PlatformError

if TYPE_CHECKING:
    from pathlib import Path

DAEMON = ["/opt/python3", "/opt/egress-proxy/bin/egress-proxy", "run"]
CURE = "use the container that runs egress-proxy run: kubectl exec POD -c CONTAINER"
SIGNAL_ONE = "send SIGHUP (reload) or SIGUSR1 (debug) to one of them with kill"


@pytest.mark.parametrize(
    ("arguments", "daemon"),
    [
        (DAEMON, True),
        (["egress-proxy", "run"], True),
        (["python3", "-m", "egress_proxy", "run"], True),
        (["/opt/egress-proxy/bin/egress-proxy", "hold"], False),
        (["/opt/egress-proxy/bin/egress-proxy", "run", "--help"], False),
        (["make", "run"], False),
        (["run"], False),
        ([""], False),
        ([], False),
    ],
)
def test_command_lines(arguments: list[str], *, daemon: bool) -> None:
    assert is_daemon(arguments) is daemon


def test_the_first_process_of_a_container_is_preferred() -> None:
    assert choose([(7, DAEMON), (1, DAEMON)]) == 1


def test_with_a_shared_process_namespace_it_is_another_one() -> None:
    assert choose([(1, ["/pause"]), (7, DAEMON), (8, ["egress-proxy", "signal", "reload"])]) == 7


@pytest.mark.parametrize(
    ("processes", "message"),
    [
        ([(1, ["/pause"])], f"no egress-proxy run in this container; {CURE}"),
        (
            [(8, DAEMON), (7, DAEMON)],
            f"several egress-proxy run here: processes 7, 8; {SIGNAL_ONE}",
        ),
    ],
)
def test_no_single_daemon(processes: list[tuple[int, list[str]]], message: str) -> None:
    with pytest.raises(PlatformError) as caught:
        choose(processes)
    assert str(caught.value) == message


@pytest.mark.parametrize("there", [True, False])
def test_a_hidden_proc_is_one_line(tmp_path: Path, *, there: bool) -> None:
    with pytest.raises(PlatformError) as caught:
        read_processes(tmp_path if there else tmp_path / "proc")
    reason = "it is empty" if there else "No such file or directory"
    assert str(caught.value) == f"can't read /proc: {reason}; mount /proc in the container"


def test_command_lines_are_read(tmp_path: Path) -> None:
    for number, octets in ((1, b"a\0b\0"), (2, b"")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes(octets)
    (tmp_path / "3").mkdir()
    (tmp_path / "self").mkdir()
    assert sorted(read_processes(tmp_path)) == [(1, ["a", "b"]), (2, [""]), (3, [])]


def test_processes_of_other_pods_are_left_out(tmp_path: Path) -> None:
    for name, namespace in (("self", "net:[1]"), ("10", "net:[1]"), ("11", "net:[2]")):
        (tmp_path / name / "ns").mkdir(parents=True)
        (tmp_path / name / "ns/net").symlink_to(namespace)
    # Of another user.
    (tmp_path / "12").mkdir()
    assert sorted(read_processes(tmp_path)) == [(10, []), (12, [])]
