from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
# `make bench` installs the project without its development tools; None makes an import fail.
WITHOUT_DEVELOPMENT_TOOLS = """
import sys
sys.modules.update(dict.fromkeys(["dns", "hypothesis", "jsonschema", "pytest"]))
import bench.__main__, bench.scaling
"""


def test_the_benchmark_needs_no_development_tools() -> None:
    command = [sys.executable, "-c", WITHOUT_DEVELOPMENT_TOOLS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
