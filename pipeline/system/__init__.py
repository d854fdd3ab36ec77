"""What every program needs: errors, crash-safe files, folders, processes, the terminal."""
