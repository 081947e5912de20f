"""The pod's own network: read, watched, and what it does not allow."""
