"""The running server: sockets, workers, reload, handover to the next release."""
