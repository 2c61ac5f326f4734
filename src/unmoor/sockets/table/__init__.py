"""Bindings compiled to the dispatch table, and the record of what was compiled."""
