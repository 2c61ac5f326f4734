"""Policies, the pools they answer from, and how addresses are drawn."""
