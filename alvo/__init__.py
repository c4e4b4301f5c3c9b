"""The target side: aggregation, load and the tables that they fill."""
