"""Registered hostnames: those of the document, and the registry of millions."""
