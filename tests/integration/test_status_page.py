"""The status page in a real browser."""

from __future__ import annotations

import asyncio
import html
import re
import shutil
import socket
import time
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from egress_proxy.telemetry.admin import AdminServer
from egress_proxy.telemetry.pages import Pages, _policy
from egress_proxy.telemetry.status import ConnectTimes, Failure, Reloads, Source, Upstream
from tests.support.needs import do_without
from tests.support.statuses import Shown, destination, name, status

if TYPE_CHECKING:
    from pathlib import Path

    from egress_proxy.telemetry.status import Status

pytestmark = pytest.mark.asyncio

# It requests only the page: the machine may have no internet.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
# Of the page's own clock, which asks every two seconds: enough for the second answer.
BUDGET_MS = 3500

NO_ADDRESS = "no address of a.example answers; connect timeout, 7 s ago"
ONE_OF_TWO = "1 of 2 addresses failing; connect timeout, 7 s ago"
# In place of a figure that is not known.
NONE = "\N{EN DASH}"
RATES = f"{NONE} {NONE} {NONE}"
HOSTILE = "<img src=x onerror=document.title='broken'>"


def example() -> Status:
    """A pod with one destination of each kind of trouble."""
    now = time.time()
    web = replace(
        name("no answer within 10 s"),
        name="web.example.com",
        addresses=2,
        stale=True,
        last_success=now - 400,
        last_failure=Failure(
            what="no answer within 10 s, asked EGRESS_DNS_PROXY_NAMESERVERS", at=now - 42
        ),
    )
    gone = replace(name(), name="old.example.net", last_failure=Failure(what=HOSTILE, at=now - 3))
    fine = replace(
        name(), name="db.example.com", addresses=1, fresh_until=now + 47.2, last_success=now - 13
    )
    return replace(
        status(),
        version="0.1.0",
        now=now,
        started=now - 93_784,
        sources=(Source(address="192.0.2.99", problem=""),),
        active=131,
        maximum=10_000,
        reloads=Reloads(reloaded=4, rejected=1, last=now - 60, problems=()),
        names=(web, gone, fine),
        destinations=(
            replace(
                destination(),
                destination="db.example.com:5432",
                listener=5432,
                name="db.example.com",
                upstreams=(Upstream(address="203.0.113.20", healthy=True),),
                since=now - 3600,
                active=128,
                total=40_211,
                established=40_000,
                connect_times=ConnectTimes(within=(0,) * 8, count=40_000, sum_s=100.0),
                ended={"finished": 40_080, "idle_timeout": 3},
                bytes_to_upstream=8_123_456,
                bytes_to_client=71_234_567_890,
            ),
            replace(
                destination(port=8443, name="web.example.com"),
                destination="web.example.com:443",
                upstreams=(
                    Upstream(address="203.0.113.10", healthy=True),
                    Upstream(address="203.0.113.11", healthy=False, failed_at=now - 80),
                ),
                since=now - 3600,
                active=3,
                total=905,
                ended={"finished": 890, "connect_timeout": 12},
                last_failure=Failure(what="connect_timeout", at=now - 7),
            ),
            replace(
                destination("refusing", port=100, name="old.example.net"),
                upstreams=(),
                since=now - 7200,
            ),
            replace(
                destination("failing", port=636),
                destination="ldap.example.com:636",
                upstreams=(Upstream(address="192.0.2.1", healthy=False, failed_at=now - 300),),
                since=now - 300,
                last_failure=Failure(what="connect_timeout", at=now - 7),
            ),
            replace(destination("removed", port=81), total=7, upstreams=()),
        ),
    )


async def browse(
    directory: Path, *flags: str, shown: Shown | None = None, script: str = "", path: str = ""
) -> str:
    """What Chromium says of the page at `path`; it also runs `script`, a second after the start."""
    if shutil.which("chromium") is None:
        do_without("chromium is missing (Debian: chromium)")
    sock = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{sock.getsockname()[1]}/{path}"
    pages = Pages(shown or Shown(example()), fresh_s=0)
    # The page's policy allows no other script than its own.
    late = f"setTimeout(() => {{ {script} }}, 1000);\n</script>".encode()
    pages._page = pages._page.replace(b"</script>", late)
    pages._policy = _policy(pages._page)
    server = AdminServer(pages)
    await server.start([sock])
    try:
        browser = await asyncio.create_subprocess_exec(
            "chromium",
            *FLAGS,
            f"--user-data-dir={directory / 'profile'}",
            f"--virtual-time-budget={BUDGET_MS}",
            *flags,
            address,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        told, _ = await browser.communicate()
    finally:
        await server.stop()
    assert browser.returncode == 0
    return told.decode()


def text_of(page: str) -> str:
    """What a person reads."""
    body = re.split("<body[^>]*>", page)[1]
    body = re.sub(r"<script>.*?</script>", "", body, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def rows_of(page: str) -> list[str]:
    """The lines of the table, as a person reads them."""
    _, _, table = page.partition('<tbody id="rows">')
    return [text_of(f"<body>{row}") for row in table.partition("</tbody>")[0].split("</tr>")[:-1]]


async def test_the_page_shows_what_the_pod_does_and_what_fails(tmp_path: Path) -> None:
    page = await browse(tmp_path, "--dump-dom")
    told = text_of(page)
    for words in (
        "egress-proxy 0.1.0 ready, with problems egress/router-1 on worker-3 2026-",
        "source 192.0.2.99 interface macvlan0 up 1 d 2 h connections 131 of 10000 pauses 0",
        "reloads 4, 1 rejected, last 1 min 0 s ago log info, 0 dropped defects 0",
        "1 refusing 1 failing 2 listening 1 removed (1 of them degraded)",
    ):
        assert words in re.sub(r" 20[0-9]{2}-.* UTC", " 2026- UTC", told)
    assert re.search(r"20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} UTC", told)
    assert rows_of(page) == [
        f"▸ refusing :100 old.example.net:100 2 h 0 min 0 {RATES} {NONE} a.example: timed out",
        f"▸ failing :636 ldap.example.com:636 5 min 0 s 0 {RATES} {NONE} {NO_ADDRESS}",
        f"▸ listening :8443 web.example.com:443 1 h 0 min 3 {RATES} {NONE} {ONE_OF_TWO}",
        f"▸ listening :5432 db.example.com:5432 1 h 0 min 128 {RATES} 2.5 ms",
        f"▸ removed :81 192.0.2.1:81 0 {RATES} {NONE}",
    ]
    assert "<title>ready, with problems · egress/router-1</title>" in page


async def test_a_click_shows_the_details_and_what_dns_says_is_only_text(tmp_path: Path) -> None:
    page = await browse(
        tmp_path,
        "--dump-dom",
        script="document.querySelectorAll('td button').forEach((button) => button.click())",
    )
    nothing = "connections 0, 0 established to remote host 0 B to clients 0 B"
    told = [row for row in rows_of(page) if row.startswith("addresses")]
    for row, words in zip(
        told,
        [
            (
                nothing,
                f"addresses none {nothing} TTL no answer yet last DNS error {HOSTILE}, 3 s ago",
            ),
            (f"addresses 192.0.2.1 (failing for 5 min 0 s) {nothing}",),
            (
                "addresses 203.0.113.10, 203.0.113.11 (failing for 1 min 20 s) connections 905, 0",
                "ended finished 890, connect timeout 12 TTL stale last DNS error no answer within",
                # Only reasons lose their underscores.
                "asked EGRESS_DNS_PROXY_NAMESERVERS, 42 s ago",
            ),
            (
                "addresses 203.0.113.20 connections 40211, 40000 established",
                "to remote host 7.7 MiB to clients 66.3 GiB ended finished 40080, idle timeout 3",
                "TTL 47 s left",
            ),
            ("addresses none connections 7, 0",),
        ],
        strict=True,
    ):
        for each in words:
            assert each in row
    assert "<img" not in page


async def test_the_details_list_sessions_where_that_is_wanted(tmp_path: Path) -> None:
    wanted = Shown(replace(example(), sessions_listed=True))
    click = "document.querySelectorAll('td button')[3].click()"
    page = await browse(tmp_path, "--dump-dom", shown=wanted, script=click)
    assert (
        "1 of 7 sessions, by age client remote address age idle out in "
        "10.128.0.7:40000 192.0.2.1:80 1 h 1 min 12 s 2.0 KiB 4.0 KiB"
    ) in text_of(page)
    page = await browse(tmp_path, "--dump-dom", script=click)
    assert "sessions, by" not in text_of(page)


async def test_the_filter_is_part_of_the_address_and_a_click_sorts(tmp_path: Path) -> None:
    page = await browse(tmp_path, "--dump-dom", path="#listening%20example.com")
    assert [row.split()[2] for row in rows_of(page)] == [":8443", ":5432"]
    page = await browse(
        tmp_path,
        "--dump-dom",
        path="#listening",
        script="document.querySelectorAll('th button')[4].click()",
    )
    assert [row.split()[2] for row in rows_of(page)] == [":5432", ":8443"]


class Moving(Shown):
    """Each status is two seconds and some traffic later than the one before."""

    async def take(self) -> Status:
        before = await super().take()
        first, *others = before.destinations
        later = replace(
            first,
            total=first.total + 3,
            bytes_to_upstream=first.bytes_to_upstream + 2048,
            bytes_to_client=first.bytes_to_client + 4096,
        )
        self.status = replace(before, now=before.now + 2, destinations=(later, *others))
        return before


async def test_rates_are_of_the_last_two_answers(tmp_path: Path) -> None:
    page = await browse(tmp_path, "--dump-dom", shown=Moving(example()), path="#5432")
    assert rows_of(page) == [
        "▸ listening :5432 db.example.com:5432 1 h 0 min 128 1.5/s 1.0 KiB/s 2.0 KiB/s 2.5 ms"
    ]


class Falling(Shown):
    """There is one status, and then there are none."""

    async def take(self) -> Status:
        if self.taken:
            # The server resets the connection.
            raise ConnectionResetError
        return await super().take()


async def test_figures_of_a_pod_that_does_not_answer_are_dimmed(tmp_path: Path) -> None:
    page = await browse(tmp_path, "--dump-dom", shown=Falling(example()))
    assert re.search(r"no answer since [-0-9]+ [:0-9]+ UTC", text_of(page))
    assert '<body class="stale">' in page
    assert len(rows_of(page)) == 5


@pytest.mark.parametrize(
    ("shown", "state", "colour"),
    [
        (status(destination()), "ready", "good"),
        (replace(status(destination()), sources=()), "ready, with problems", "warn"),
        (status(destination(), source="no interface has it"), "not ready", "bad"),
    ],
)
async def test_the_colour_is_that_of_the_worst(
    tmp_path: Path, shown: Status, state: str, colour: str
) -> None:
    page = await browse(tmp_path, "--dump-dom", shown=Shown(shown))
    assert f'<span id="state" role="status" class="{colour}">{state}</span>' in page
    # With EGRESS_DNS_PROXY_SOURCE=any no egress interface is used.
    assert ("interface macvlan0" in text_of(page)) == bool(shown.sources)


async def test_a_standby_is_shown_as_one_and_is_ready(tmp_path: Path) -> None:
    shown = replace(status(destination(), source="no interface has it"), role="standby")
    page = await browse(tmp_path, "--dump-dom", shown=Shown(shown))
    assert "role standby" in text_of(page)
    assert '<span id="state" role="status" class="good">ready</span>' in page


@pytest.mark.parametrize(
    ("count", "flags"),
    [
        (200, ("--window-size=1280,900",)),
        (3, ("--window-size=500,1400", "--blink-settings=preferredColorScheme=0")),
    ],
    ids=["desk", "phone at night"],
)
async def test_the_page_can_be_drawn(count: int, flags: tuple[str, ...], tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    shown = Shown(status(*(destination(port=port) for port in range(1, count + 1))))
    await browse(tmp_path, *flags, f"--screenshot={picture}", shown=shown)
    assert picture.read_bytes().startswith(b"\x89PNG")
