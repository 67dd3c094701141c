"""Documents, token windows and masked batches."""
