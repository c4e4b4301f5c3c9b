"""AdventureWorks: CSVs on S3 to PostgreSQL."""
