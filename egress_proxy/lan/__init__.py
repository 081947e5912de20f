"""The LAN that the egress interface is on: ARP and neighbour discovery, asked and told."""
