"""What the server reports: metrics, journal of addresses, query log."""
