"""What a write that failed half way leaves to do."""

from __future__ import annotations

import pytest

from egress_proxy.telemetry.log_writer import after_write


@pytest.mark.parametrize(
    ("data", "written", "begun", "left"),
    [
        (b"a\nbc\n", 5, 0, (b"", 0)),
        (b"a\nbc\n", 0, 0, (b"", 2)),
        (b"a\nbc\n", 2, 0, (b"", 1)),
        # The second line is begun.
        (b"a\nbc\nd\n", 3, 0, (b"c\n", 1)),
        (b"a\nbc\n", 4, 0, (b"\n", 0)),
        # The data starts with the rest of a line, and nothing of it could be written.
        (b"c\nd\n", 0, 2, (b"c\n", 1)),
        (b"c\nd\n", 1, 2, (b"\n", 1)),
        (b"c\nd\n", 2, 2, (b"", 1)),
        (b"c\ndef\n", 3, 2, (b"ef\n", 0)),
    ],
)
def test_the_rest_of_a_line_that_is_begun_and_the_lines_that_are_lost(
    data: bytes, written: int, begun: int, left: tuple[bytes, int]
) -> None:
    assert after_write(data, written, begun) == left
