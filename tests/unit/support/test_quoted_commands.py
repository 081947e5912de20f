"""What counts as a command that a document quotes."""

from __future__ import annotations

import pytest

from tests.support.quoted_commands import Exec, in_containers, occurrences, of_podman

CHECK = ("egress-proxy", "check")


@pytest.mark.parametrize(
    ("markdown", "wanted"),
    [
        ("`kubectl exec POD -- egress-proxy check`", [Exec("", CHECK)]),
        ("`kubectl exec POD -c main --\negress-proxy check`", [Exec("main", CHECK)]),
        ("`kubectl exec -it POD --container=main -- egress-proxy check`", [Exec("main", CHECK)]),
        ("`oc exec POD --container main -- egress-proxy check`", [Exec("main", CHECK)]),
        ("see `egress-proxy check`", [Exec("", CHECK)]),
        ("```\nkubectl exec POD -- \\\n    egress-proxy check\n```", [Exec("", CHECK)]),
        ("1. Do:\n\n   ```\n   egress-proxy check\n   ```", [Exec("", CHECK)]),
        ("`kubectl exec POD -- a 'b c'`", [Exec("", ("a", "b c"))]),
        ("`egress-proxy run --help`", [Exec("", ("egress-proxy", "run", "--help"))]),
        ("`egress-proxy run`, `egress-proxy init`, `egress-proxy`, `kubectl get pod`", []),
    ],
)
def test_commands_for_containers(markdown: str, wanted: list[Exec]) -> None:
    assert in_containers(markdown) == wanted


def test_a_command_without_its_separator_is_an_error() -> None:
    with pytest.raises(ValueError, match="--"):
        in_containers("`kubectl exec POD egress-proxy check`")


def test_podman_with_its_continued_lines() -> None:
    text = "```\npodman run --rm \\\n    image check\n```\n`podman run image`, `podman build`"
    assert of_podman(text) == ["podman run --rm image check", "podman run image"]


def test_occurrences_are_counted_in_any_form() -> None:
    text = "kubectl\nexec, <code>podman run</code>, `oc exec POD -- true`, kubectl get"
    assert occurrences(text) == 3
