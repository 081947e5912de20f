"""ARP and neighbour discovery on the LAN of the egress interface."""
