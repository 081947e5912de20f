"""`egress-proxy check`: what `init` and `run` would do, and what prevents it."""
