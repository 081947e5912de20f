from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.tools import write_wrappers

if TYPE_CHECKING:
    from collections.abc import Iterator


def files_of_this_process() -> Iterator[Path]:
    """The shared libraries, and the loader, that this Python has mapped."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        _, _, name = line.partition("/")
        if ".so" in name:
            yield Path("/", name)


def test_a_wrapper_runs_the_unpacked_program_with_the_unpacked_libraries(tmp_path: Path) -> None:
    mapped = {path.name: path for path in files_of_this_process()}
    (loader,) = (name for name in mapped if name.startswith("ld"))
    tree, destination = tmp_path / "tree", tmp_path / "moved"
    libraries, programs = tree / "usr/lib/any", tree / "usr/sbin"
    libraries.mkdir(parents=True)
    programs.mkdir()
    (libraries / "libc.so.6").symlink_to(mapped["libc.so.6"])
    (libraries / loader).symlink_to(mapped[loader])
    for name in ("haproxy", "nginx"):
        (programs / name).symlink_to("/usr/bin/printf")
    write_wrappers(tree, destination)
    tree.rename(destination)
    done = subprocess.run(
        [destination / "commands/nginx", "%s|", "-c", "a path"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "-c|a path|"
