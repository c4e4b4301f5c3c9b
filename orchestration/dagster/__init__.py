"""Dagster around orchestration.day and days: `dagster dev` loads `orchestration.dagster.definitions.defs`."""

import warnings

# Range backfills are beta in Dagster, partitioned checks a preview. Both are chosen on purpose, so no process warns.
# The filter names the message, not Dagster's class, because __main__ reports on one line that Dagster is missing.
warnings.filterwarnings("ignore", message=".* is currently in (beta|preview)")
