"""`egress-proxy status` and `egress-proxy signal`: talk to the daemon that runs in the pod."""
