"""`compare`: recorded runs side by side."""
