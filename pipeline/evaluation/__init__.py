"""From `Predictions` to numbers and figures."""
