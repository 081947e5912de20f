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

from egress_proxy.telemetry.admin import AdminServer, Pages
from egress_proxy.telemetry.status import Failure, Reloads, Source, Upstream
from tests.support.needs import do_without
from tests.support.statuses import Shown, destination, name, status

if TYPE_CHECKING:
    from pathlib import Path

    from egress_proxy.telemetry.status import Status

pytestmark = pytest.mark.asyncio

# It asks nobody but the page: the machine may have no way out.
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
# Of the page's own clock: enough for the answer, not for the second one.
BUDGET = "--virtual-time-budget=1500"

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
        last_failure=Failure(what="no answer within 10 s", at=now - 42),
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
                active=128,
                total=40_211,
                ended={"finished": 40_080, "idle_timeout": 3},
                bytes_to_upstream=8_123_456,
                bytes_to_client=71_234_567_890,
            ),
            replace(
                destination(port=8443, name="web.example.com"),
                destination="web.example.com:443",
                upstreams=(
                    Upstream(address="203.0.113.10", healthy=True),
                    Upstream(address="203.0.113.11", healthy=False),
                ),
                active=3,
                total=905,
                ended={"finished": 890, "connect_timeout": 12},
                last_failure=Failure(what="connect_timeout", at=now - 7),
            ),
            replace(destination("refusing", port=100, name="old.example.net"), upstreams=()),
            replace(destination("removed", port=81), total=7, upstreams=()),
        ),
    )


async def browse(directory: Path, *flags: str) -> str:
    """What Chromium says of the page; `{address}` in a flag is where the page is."""
    if shutil.which("chromium") is None:
        do_without("chromium is missing (Debian: chromium)")
    sock = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{sock.getsockname()[1]}/"
    server = AdminServer(Pages(Shown(example())))
    await server.start([sock])
    try:
        browser = await asyncio.create_subprocess_exec(
            "chromium",
            *FLAGS,
            f"--user-data-dir={directory / 'profile'}",
            BUDGET,
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
    _, _, body = page.partition("<body>")
    body = re.sub(r"<script>.*?</script>", "", body, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


async def test_the_page_says_what_the_pod_does_and_what_fails(tmp_path: Path) -> None:
    page = await browse(tmp_path, "--dump-dom")
    told = text_of(page)
    for words in (
        "egress-proxy 0.1.0 ready as of",
        "source 192.0.2.99 interface macvlan0 uptime 1 d 2 h connections 131 of 10000",
        "reloads 4, 1 rejected log info, 0 dropped",
        ":5432 → db.example.com:5432 listening active 128 connections 40211",
        "to upstream 7.7 MiB to client 66.3 GiB TTL 47 s left",
        "addresses 203.0.113.20 ended finished 40080, idle timeout 3",
        "TTL stale addresses 203.0.113.10, 203.0.113.11 (failing)",
        "last error connect timeout, 7 s ago last DNS error no answer within 10 s, 42 s ago",
        ":81 → 192.0.2.1:81 removed",
        # What DNS says is text, whatever it looks like.
        f"addresses none last DNS error {HOSTILE}, 3 s ago",
    ):
        assert words in told
    assert "<title>ready · egress-proxy</title>" in page
    assert "<img" not in page


@pytest.mark.parametrize(
    "flags",
    [
        ("--window-size=1100,900",),
        ("--window-size=500,1400", "--blink-settings=preferredColorScheme=0"),
    ],
    ids=["desk", "phone at night"],
)
async def test_the_page_can_be_drawn(flags: tuple[str, ...], tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    await browse(tmp_path, *flags, f"--screenshot={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")
