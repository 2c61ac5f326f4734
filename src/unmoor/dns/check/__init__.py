"""Everything that can be wrong with a DNS document, and what differs between two."""
