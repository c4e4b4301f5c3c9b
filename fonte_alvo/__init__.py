"""The ground that both sides stand on: settings, commands, PostgreSQL, and HTTP services. It imports neither side."""
