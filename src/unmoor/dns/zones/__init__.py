"""Zones: zone files, transferred zones and their copies on disk, catalog zones."""
