"""`egress-proxy run`: composition, destinations and their reload, drain."""
