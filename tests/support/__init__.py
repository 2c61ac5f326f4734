"""Helpers that test modules and benches share: documents, servers and clients."""
