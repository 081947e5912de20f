"""What `egress-proxy check` has found, as a table for a person or JSON for a program."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import msgspec

from egress_proxy.errors import ConfigurationError, EgressProxyError, PlatformError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was examined or left out; `cure` is empty when there is nothing to do."""

    subject: str
    state: Literal["good", "warning", "failed", "skipped"]
    detail: str
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.detail}; {self.cure}" if self.cure else self.detail


class Report:
    """Collects findings; a command that would fail is one of them, with its problems."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.plan: list[str] = []
        self._problems: list[Problem] = []
        self._status = PlatformError.exit_status

    def good(self, subject: str, detail: str) -> None:
        self.findings.append(Finding(subject=subject, state="good", detail=detail))

    def skipped(self, subject: str, detail: str) -> None:
        self.findings.append(Finding(subject=subject, state="skipped", detail=detail))

    def warn(self, problems: Iterable[Problem]) -> None:
        """Add problems that prevent nothing, one finding each."""
        for problem in problems:
            where = dataclasses.replace(problem, reason="", cure="")
            self.findings.append(
                Finding(
                    subject=str(where).removesuffix(": ") or "network",
                    state="warning",
                    detail=problem.reason,
                    cure=problem.cure,
                )
            )

    def failed(self, subject: str, error: EgressProxyError) -> None:
        """`subject` is a command that would fail with `error`."""
        count = len(error.problems)
        self.findings.append(
            Finding(
                subject=subject,
                state="failed",
                detail="1 problem" if count == 1 else f"{count} problems",
            )
        )
        # The configuration must be corrected first: status 2 before status 1.
        self._status = max(self._status, error.exit_status)
        # Two commands may have the same problem.
        known = set(map(_key, self._problems))
        self._problems += [problem for problem in error.problems if _key(problem) not in known]

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings; each one that failed is a problem of the pod."""
        for finding in findings:
            self.findings.append(finding)
            if finding.state == "failed":
                self._problems.append(
                    Problem(reason=f"{finding.subject}: {finding.detail}", cure=finding.cure)
                )

    def tell(self, output: str) -> None:
        """Print everything. Raises all problems as one error."""
        if output == "json":
            self._print_json(self._problems, self._status if self._problems else 0)
        else:
            self._print_table()
        if self._problems:
            kind = ConfigurationError if self._status == 2 else PlatformError  # noqa: PLR2004 - exit status
            raise kind(*self._problems)

    def _print_table(self) -> None:
        width = max((len(finding.subject) for finding in self.findings), default=0)
        for finding in self.findings:
            # Cures of failures are printed with them, on stderr.
            text = finding.detail if finding.state == "failed" else str(finding)
            print(f"{finding.state:7}  {finding.subject:{width}}  {text}")  # noqa: T201 - the output
        for line in self.plan:
            print(line)  # noqa: T201 - the command's output

    def _print_json(self, problems: Sequence[Problem], exit_status: int) -> None:
        report = {
            "exit_status": exit_status,
            "problems": [dataclasses.asdict(problem) for problem in problems],
            "findings": self.findings,
            "plan": self.plan,
        }
        text = msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
        print(text)  # noqa: T201 - the command's output


def _key(problem: Problem) -> tuple[object, ...]:
    """Two commands have the same problem if this is equal; details in parentheses may differ."""
    reason = problem.reason.partition(" (")[0]
    return problem.variable, problem.line, problem.value, reason
