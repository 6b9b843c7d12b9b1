"""The household's page: `app` serves it, `port` says what it asks of a home."""
