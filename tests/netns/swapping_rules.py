"""A process that replaces our table with another one as fast as nft can, until it is killed."""

from __future__ import annotations

import sys
from pathlib import Path

from egress_proxy.nft import command


def main() -> None:
    texts = [Path(name).read_text() for name in sys.argv[1:]]
    print('{"event": "swapping"}', flush=True)  # noqa: T201 - the test waits for it
    while True:
        for text in texts:
            command.commit(text)


if __name__ == "__main__":
    main()
