"""The alert rules of `deploy/monitoring`, and promtool, which checks and tests them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.support.needs import do_without

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
RULE = (MONITORING / "prometheusrule.yaml").read_text()
ALERTS = re.findall(r"- alert: (\w+)", RULE)


def write_rules(directory: Path) -> None:
    """Write ``rules.yaml`` as Prometheus reads it: what the operator takes out of the resource."""
    _, _, spec = RULE.partition("\nspec:\n")
    (directory / "rules.yaml").write_text(re.sub("^  ", "", spec, flags=re.MULTILINE))


def promtool(directory: Path, command: str) -> None:
    """Run promtool in `directory`; it must find nothing wrong."""
    if shutil.which("promtool") is None:
        do_without("promtool is missing (Debian: prometheus)")
    judged = subprocess.run(
        ["promtool", *command.split()], cwd=directory, capture_output=True, text=True, check=False
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert "SUCCESS" in judged.stdout
