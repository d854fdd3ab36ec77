"""From `Predictions` to metrics and figures."""
