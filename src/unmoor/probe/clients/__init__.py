"""Clients that a probe runs: TCP and TLS connections, DNS queries, and packets through a next hop."""
