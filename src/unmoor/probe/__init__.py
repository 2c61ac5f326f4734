"""Probes from a vantage host: whether every address answers, and whether DNS answers are spread evenly."""
