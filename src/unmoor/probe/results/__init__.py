"""Results of a probe: counts, statistical tests, text, JSON and charts."""
