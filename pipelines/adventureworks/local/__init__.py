"""AWS and Airflow on this machine, without an account."""
