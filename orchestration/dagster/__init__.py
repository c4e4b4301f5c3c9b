"""Dagster around orchestration.day and days: `orchestration.dagster.definitions.defs` is what `dagster dev` loads."""

import warnings

import dagster as dg

# Range backfills are beta in Dagster, partitioned checks a preview: chosen, so that no process needs to say it again.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)
