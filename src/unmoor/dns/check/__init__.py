"""Validation of DNS documents, and descriptions of changes between two."""
