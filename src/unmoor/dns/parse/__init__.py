"""Parsing of DNS documents: the texts inside them become zones, names and traits."""
