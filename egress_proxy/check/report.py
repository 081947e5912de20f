"""What `egress-proxy check` has found, as a table for a person or JSON for a program."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import msgspec

from egress_proxy.errors import ConfigurationError, EgressProxyError, PlatformError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at; `cure` is empty when it is good."""

    subject: str
    state: Literal["good", "warning", "failed"]
    detail: str
    cure: str = ""


class Report:
    """What `check` has found, for a person or a program."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.plan: list[str] = []
        self.failures: list[EgressProxyError] = []

    def good(self, subject: str, detail: str) -> None:
        self.findings.append(Finding(subject=subject, state="good", detail=detail))

    def tell(self, output: str) -> None:
        """Print it. Raises all failures as one."""
        problems = [problem for failure in self.failures for problem in failure.problems]
        problems += [
            Problem(reason=f"{finding.subject}: {finding.detail}", cure=finding.cure)
            for finding in self.findings
            if finding.state == "failed"
        ]
        # The one that is mended first decides: 2 before 1.
        status = max((failure.exit_status for failure in self.failures), default=1)
        if output == "json":
            self._print_json(problems, status if problems else 0)
        else:
            self._print_table()
        if problems:
            raise (
                ConfigurationError if status == ConfigurationError.exit_status else PlatformError
            )(*problems)

    def _print_table(self) -> None:
        width = max((len(finding.subject) for finding in self.findings), default=0)
        for finding in self.findings:
            line = f"{finding.state:7}  {finding.subject:{width}}  {finding.detail}"
            # Cures of failures are told with them, on stderr.
            cure = f"; {finding.cure}" if finding.state == "warning" else ""
            print(line + cure)  # noqa: T201 - the command's output
        for line in self.plan:
            print(line)  # noqa: T201 - the command's output

    def _print_json(self, problems: Sequence[Problem], exit_status: int) -> None:
        told = {
            "exit_status": exit_status,
            "problems": [dataclasses.asdict(problem) for problem in problems],
            "findings": self.findings,
            "plan": self.plan,
        }
        text = msgspec.json.format(msgspec.json.encode(told), indent=2).decode()
        print(text)  # noqa: T201 - the command's output
