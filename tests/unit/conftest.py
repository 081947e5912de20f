"""Property tests: enough examples to find what breaks, few enough to run at every change."""

from __future__ import annotations

from hypothesis import settings

# No deadline: a machine that does other things meanwhile makes no test wrong.
settings.register_profile("unit", max_examples=60, deadline=None, print_blob=True)
settings.load_profile("unit")
