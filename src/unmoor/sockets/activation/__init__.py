"""The activation service and its client: listeners register their sockets."""
