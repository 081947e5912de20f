"""Names become addresses and are kept fresh."""
