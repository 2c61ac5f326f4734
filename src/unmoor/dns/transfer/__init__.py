"""Zone transfers and NOTIFY, as a secondary."""
