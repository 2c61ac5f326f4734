"""The sk_lookup half: dispatch program, loader, bindings and activation service."""
