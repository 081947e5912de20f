"""One destination: listen, connect, relay, record."""
