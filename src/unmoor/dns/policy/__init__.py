"""Policies: which one answers, the pools it answers from, and how addresses are chosen."""
