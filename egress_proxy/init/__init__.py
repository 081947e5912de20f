"""`egress-proxy init`: gives the pod its reserved address and default route, then exits."""
