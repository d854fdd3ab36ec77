"""General utilities: errors, crash-safe files, folders, processes, secrets, the terminal."""
