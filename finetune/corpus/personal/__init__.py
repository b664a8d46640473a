"""Recognisers of personal data and secrets: checksums where a kind has one, context words where it has none."""
