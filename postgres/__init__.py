"""What both sides need of PostgreSQL."""
