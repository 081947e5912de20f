"""An in-pod TCP egress proxy: one reserved source address, fixed destinations."""

__version__ = "0.1.0"
