"""The authoritative DNS randomizer: policies draw a fresh address of a pool for every query."""
