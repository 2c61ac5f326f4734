"""Machines of our own on one computer: booted systemd hosts in network namespaces."""
