"""Many runs: jobs, search, workers, launchers."""
