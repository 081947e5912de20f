"""Problems as an admin reads them: one line each, whatever they quote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_proxy.errors import (
    QUOTED_CHARACTERS,
    ConfigurationError,
    EgressProxyError,
    PlatformError,
    Problem,
    quote,
)

# Everything that text can hold in Python, lone surrogates (octets that are no UTF-8) included.
ANY_TEXT = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem(reason="no room"), "no room"),
        (Problem(reason="no room", cure="make some"), "no room; make some"),
        (Problem(value="x", reason="no room"), "'x': no room"),
        (Problem(variable="SIZE", reason="no room"), "SIZE: no room"),
        (Problem(line=3, reason="no room"), "line 3: no room"),
        (Problem(variable="SIZE", value="", reason="no room"), "SIZE: '': no room"),
        (
            Problem(variable="SIZE", line=3, value="x", reason="no room", cure="make some"),
            "SIZE line 3: 'x': no room; make some",
        ),
    ],
)
def test_a_problem_names_what_is_known_and_nothing_else(problem: Problem, text: str) -> None:
    assert str(problem) == text


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("", "''"),
        ("web.example.com", "'web.example.com'"),
        ("a 'b'", "\"a 'b'\""),
        ("a\r\nb\u2028c\x1b[31m\udcff", r"'a\r\nb\u2028c\x1b[31m\udcff'"),
        ("x" * QUOTED_CHARACTERS, "'" + "x" * QUOTED_CHARACTERS + "'"),
        ("x" * (QUOTED_CHARACTERS + 1), "'" + "x" * QUOTED_CHARACTERS + "'… (81 characters)"),
    ],
)
def test_quoted_values(value: str, quoted: str) -> None:
    assert quote(value) == quoted


@given(value=ANY_TEXT)
def test_a_quoted_value_is_printable_whatever_it_holds(value: str) -> None:
    assert quote(value).isprintable()


@pytest.mark.parametrize(
    ("error", "exit_status"),
    [(EgressProxyError, 1), (PlatformError, 1), (ConfigurationError, 2)],
)
def test_an_error_shows_each_problem_on_its_own_line(
    error: type[EgressProxyError], exit_status: int
) -> None:
    problems = (Problem(reason="first"), Problem(reason="second"))
    raised = error(*problems)
    assert raised.problems == problems
    assert str(raised) == "first\nsecond"
    assert raised.exit_status == exit_status
    assert isinstance(raised, EgressProxyError)
