"""From `Prepared` data to a `Fitted` model."""
