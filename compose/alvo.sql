-- After alvo/roles.sql: the passwords of Alvo's roles are those of .env, at each start; and Dagster's own database.
\getenv reader_password ALVO_READER_PASSWORD
\getenv writer_password ALVO_WRITER_PASSWORD
\getenv dagster_password DAGSTER_PASSWORD
ALTER ROLE alvo_reader PASSWORD :'reader_password';
ALTER ROLE alvo_writer PASSWORD :'writer_password';
SELECT 'CREATE ROLE dagster LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'dagster') \gexec
ALTER ROLE dagster PASSWORD :'dagster_password';
SELECT 'CREATE DATABASE dagster OWNER dagster' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'dagster') \gexec
REVOKE ALL ON DATABASE dagster, postgres, template1 FROM PUBLIC;
