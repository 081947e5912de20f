"""init with an accident: ``scripted_init.py [--kill-before N] [--fail-before N] [--fail-undo N]``.

Changes are counted from 0, those that undo others go on counting. After each change from the
accident on, and after all without one, the default routes of the families in ``EGRESS_SOURCE`` must
be there, or the exit status is 3. Frames are sent and awaited for hundredths of a second.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

from egress_proxy.errors import PlatformError
from egress_proxy.failures import report_failure
from egress_proxy.init.announce import Pace
from egress_proxy.init.netlink import Netlink
from egress_proxy.init.run import run
from egress_proxy.init.settings import InitSettings, read_settings
from egress_proxy.init.state import MAIN_TABLE
from egress_proxy.telemetry.logs import command_log

if TYPE_CHECKING:
    from egress_proxy.init.steps import Change

# The gateway is on the same machine, and the machine may be busy.
PACE = Pace(probe_interval_s=0.02, announcement_interval_s=0.02, answer_timeout_s=1)
NO_DEFAULT_ROUTE = 3


class Unlucky(Netlink):
    """A netlink socket that fails at a given step."""

    def __init__(self, settings: InitSettings, options: argparse.Namespace) -> None:
        super().__init__()
        self._settings = settings
        self._options = options
        self._count = 0

    def apply(self, change: Change) -> None:
        number = self._count
        self._count += 1
        if number == self._options.kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        if number in (self._options.fail_before, self._options.fail_undo):
            raise OSError(errno.ENOBUFS, "an accident")
        super().apply(change)
        accident = self._options.fail_before or self._options.kill_before or 0
        if number < accident:
            # As in a run without an accident, of which all changes are checked.
            return
        for source in self._settings.sources:
            routes = self.observe().table(MAIN_TABLE, source.version)
            if not any(route.default for route in routes):
                print(f"no default route after {change}", file=sys.stderr)  # noqa: T201 - what a test reads
                os._exit(NO_DEFAULT_ROUTE)


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("--kill-before", "--fail-before", "--fail-undo"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    settings = read_settings(os.environ)
    try:
        run(
            settings,
            command_log("json", debug=True),
            open_netlink=lambda: Unlucky(settings, options),
            pace=PACE,
        )
    except PlatformError as error:
        report_failure("init", error, os.environ)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
