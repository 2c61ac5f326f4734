"""Counters in memory that the server shares with its workers."""
