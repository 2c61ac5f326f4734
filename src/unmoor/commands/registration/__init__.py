"""`unmoor sockets register` and `unregister`, which start without click."""
