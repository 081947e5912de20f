"""The entry point: ``egress-proxy`` and ``python -m egress_proxy``.

As process 1 of a container, Python ignores SIGTERM until there is a handler, and a pod that is
deleted in that moment would wait for SIGKILL. So the handlers come before the slow imports.
"""

from __future__ import annotations

import os
import signal
import sys

# The commands that run until they are stopped, and handle signals themselves once they have begun.
_DAEMONS = ("run", "hold")


def main() -> int:
    """Run the command; returns its exit status."""
    if sys.argv[1:2] and sys.argv[1] in _DAEMONS:
        for number in (signal.SIGTERM, signal.SIGINT):
            # Nothing has begun, so there is nothing to end.
            signal.signal(number, lambda *_: os._exit(0))
        for number in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    from egress_proxy import cli  # noqa: PLC0415 - see above

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
