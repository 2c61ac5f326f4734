"""Checks of parsed DNS documents."""
