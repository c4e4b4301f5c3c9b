"""Real PostgreSQL, connectors and an empty Alvo for the tests and the benchmarks."""

pytest_plugins = ["support.fixtures", "support.browser", "support.dagster_services"]
