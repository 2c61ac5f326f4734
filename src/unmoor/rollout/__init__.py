"""Edge generations: everything that defines an edge's behaviour, as one immutable manifest and its files.

The edge applies a generation, waits for its confirmation, and otherwise returns to the one before by
itself. The models are Junos (`commit confirmed`), NixOS (generations) and NetworkManager (checkpoints).
"""
