"""What the sockets half reports: status, counters, metrics, rates."""
