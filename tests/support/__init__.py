"""What test modules share: documents, servers and clients. `tests` is on the path of pytest and mypy."""
