"""`serve`: a model over HTTP."""
