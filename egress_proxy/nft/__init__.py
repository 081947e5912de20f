"""The kernel forwards: an nftables table of our own, and the flows that conntrack knows."""
