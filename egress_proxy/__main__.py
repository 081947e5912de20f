"""``python -m egress_proxy``."""

import sys

from egress_proxy.cli import main

sys.exit(main())
