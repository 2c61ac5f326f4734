"""Registered hostnames: those of the document, and those of the registry, a file for millions of them."""
