"""Linux namespaces by system call: become root in a new one, make networks, start commands inside.

Python 3.11 has no ``os.unshare`` and no ``os.setns``, and a bare machine has no iproute2; libc has
both calls. A network namespace lives exactly as long as something holds it, so a crash or a
SIGKILL of the test run leaves nothing behind: there is no name under ``/run/netns`` to remove.

Run as a script, this file is the launcher of a `Container`: it enters a namespace, gives up what
the command must not have, and becomes the command. A process of its own can do what a thread of
the test run can't: make a user namespace, and die with its parent.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import getpass
import json
import os
import signal
import struct
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

# linux/mount.h
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000

_MOUNT_ATTR_RDONLY = 0x1

# linux/fcntl.h
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

# asm-generic/unistd.h, the same for every architecture.
_SYS_MOUNT_SETATTR = 442

# seccomp.h
_SCMP_ACT_ERRNO = 0x00050000
_SCMP_ACT_ALLOW = 0x7FFF0000

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38

# linux/capability.h: the numbers of those that a test may leave to a command.
_CAPABILITIES = {"NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "NET_RAW": 13}

_libc = ctypes.CDLL(None, use_errno=True)


class LabUnavailableError(Exception):
    """This machine does not allow network namespaces; the text says what it refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What a command has of its own, as a container would give it.

    `resolv_conf` is the path of a file to be seen as /etc/resolv.conf, `etc` that of a directory to
    be seen as /etc. `service_account` is that of a directory to be seen where Kubernetes mounts the
    token; the rest of /run is hidden. `inotify` is whether any instance is left of them
    (inotify(7)). `read_only` takes every file system, /proc/sys among them. `capabilities` are all
    that root keeps; None is every one. `uid` is a user and group without any capability; 0 is root.
    `system_calls` are all that it may make, by name; None is every one. Without CAP_SYS_ADMIN they
    need one of the two before, for its no_new_privs, and always libseccomp.
    """

    resolv_conf: str | None = None
    etc: str | None = None
    service_account: str | None = None
    inotify: bool = True
    read_only: bool = False
    capabilities: tuple[str, ...] | None = None
    uid: int = 0
    system_calls: tuple[str, ...] | None = None

    def launcher(self, network: int, *argv: str) -> list[str]:
        """The command line of `argv` in a container and in the network of that descriptor.

        The descriptor is to be open in the new process, under the same number.
        """
        container = json.dumps(dataclasses.asdict(self))
        return [sys.executable, "-I", "-S", __file__, str(network), container, *argv]


PRIVILEGED = Container()


def become_root() -> None:
    """Enter a user namespace as its root, unless this process may make network namespaces already.

    To be called before the process has a second thread: the kernel refuses it later.
    """
    if _refusal(CLONE_NEWNET | CLONE_NEWNS) is None:
        return
    # A user namespace can't be left again, so a child finds out whether it would be of any use.
    refusal = _refusal(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS)
    if refusal is not None:
        raise LabUnavailableError(
            f"uid {os.getuid()} may not make network namespaces ({refusal}); run as root, or allow "
            "user namespaces: user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns"
        )
    if threading.active_count() > 1:
        raise LabUnavailableError(
            "a process with threads can't enter a user namespace: to run tests in parallel, name "
            "their directories, so that pytest starts its workers as root"
        )
    # pytest names its temporary directory after the user: "root" would be the real root's.
    os.environ.setdefault("LOGNAME", getpass.getuser())
    _enter_user_namespace(uid=0)


def _refusal(flags: int) -> str | None:
    """The kernel's answer to `unshare(flags)` and a first use of it, tried in a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if flags & CLONE_NEWUSER:
                _enter_user_namespace(uid=0)
            unshare(flags & ~CLONE_NEWUSER)
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text or None


def _enter_user_namespace(*, uid: int) -> None:
    """Become `uid`, with a group of the same number, in a new user namespace."""
    outer_uid, outer_gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {outer_uid} 1")
    Path("/proc/self/gid_map").write_text(f"{uid} {outer_gid} 1")


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into the namespace of `descriptor`."""
    _check(_libc.setns(descriptor, kind), "setns")


def _mount(source: str, target: str, flags: int, kind: str = "") -> None:
    type_ = kind.encode() or None
    result = _libc.mount(source.encode(), target.encode(), type_, ctypes.c_ulong(flags), None)
    _check(result, f"mount {source} on {target}")


def _make_read_only(target: str) -> None:
    """Make all mounts at `target` and below read-only (mount_setattr(2))."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    arguments = (_AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, len(attributes))
    # libc has no wrapper before glibc 2.36, and musl none at all.
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, *arguments), f"mount_setattr {target}")


def _prctl(option: int, argument: int) -> None:
    words = (ctypes.c_ulong(word) for word in (argument, 0, 0, 0))
    _check(_libc.prctl(option, *words), f"prctl {option}")


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def _drop_capabilities(*, keep: tuple[str, ...]) -> None:
    """Take all but `keep` from what root gets with the next execve."""
    kept = {_CAPABILITIES[name] for name in keep}
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in set(range(last + 1)) - kept:
        _prctl(_PR_CAPBSET_DROP, capability)


def _allow_system_calls(names: tuple[str, ...]) -> None:
    """Make the kernel return ENOSYS for all others, from now on (seccomp_init(3))."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(_SCMP_ACT_ERRNO | errno.ENOSYS))
    for name in names:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        # Negative: not one of this architecture.
        if number >= 0 and seccomp.seccomp_rule_add(context, _SCMP_ACT_ALLOW, number, 0) < 0:
            raise OSError(errno.EINVAL, f"seccomp_rule_add {name}")
    if seccomp.seccomp_load(context) < 0:
        raise OSError(errno.EINVAL, "seccomp_load")


def _launch(network: int, container: Container, argv: list[str]) -> None:
    setns(network, CLONE_NEWNET)
    os.close(network)
    for source, target in ((container.resolv_conf, "/etc/resolv.conf"), (container.etc, "/etc")):
        if source is not None:
            unshare(CLONE_NEWNS)
            # Where systemd shares mounts, the next one would show up in the machine's own /etc.
            _mount("none", "/", _MS_REC | _MS_PRIVATE)
            _mount(source, target, _MS_BIND)
    if container.service_account is not None:
        unshare(CLONE_NEWNS)
        _mount("none", "/", _MS_REC | _MS_PRIVATE)
        # Out of sight once /run is hidden, and still there.
        folder = os.open(container.service_account, os.O_PATH)
        _mount("none", "/run", 0, "tmpfs")
        mount = Path("/run/secrets/kubernetes.io/serviceaccount")
        mount.mkdir(parents=True)
        _mount(f"/proc/self/fd/{folder}", str(mount), _MS_BIND)
        os.close(folder)
    if container.capabilities is not None:
        _drop_capabilities(keep=container.capabilities)
    if container.uid != 0 or not container.inotify:
        # Root of a user namespace knows no other user than itself, so setuid() can't do it; a
        # namespace inside has no power over the network, which belongs to the outer one.
        _enter_user_namespace(uid=container.uid)
    if not container.inotify:
        # The limit of this user namespace alone (user_namespaces(7)).
        Path("/proc/sys/user/max_inotify_instances").write_text("0")
    if container.read_only:
        # Only now: entering a user namespace writes files below /proc.
        unshare(CLONE_NEWNS)
        _make_read_only("/")
    if container.uid != 0 or container.capabilities is not None:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    environment = _given_environment()
    if container.system_calls is not None:
        _allow_system_calls(container.system_calls)
    os.execve(argv[0], argv, environment)  # noqa: S606 - becoming the command is the point


def _given_environment() -> dict[bytes, bytes]:
    """The environment that this process was started with: Python adds LC_CTYPE to its own."""
    entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(entry.split(b"=", 1) for entry in entries if entry)


if __name__ == "__main__":
    _launch(int(sys.argv[1]), Container(**json.loads(sys.argv[2])), sys.argv[3:])
