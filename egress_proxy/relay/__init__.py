"""Octets between two sockets, on one epoll."""
