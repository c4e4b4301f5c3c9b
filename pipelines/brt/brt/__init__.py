"""The positions of Rio de Janeiro's BRT buses: captured every minute, loaded into PostgreSQL, modelled by dbt."""
