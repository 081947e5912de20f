"""`egress-proxy hold`: holds the reserved address while the Lease, the LAN and the kernel agree."""
