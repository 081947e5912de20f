"""`egress-proxy init`: give the pod its reserved address and its way out, then exit."""
