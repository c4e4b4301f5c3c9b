-- Roles of Alvo that can do no more than they need: alvo_writer for etl.py and for the routes of alvo.api that change
-- data, alvo_reader for all that only read. Run it once `python -m alvo.schema` has made the tables, and again as often
-- as you like, as a superuser, or as the owner of the database and the tables if that role may create roles; then give
-- each role its password:
--   psql DATABASE_URL -f alvo/roles.sql
--   psql DATABASE_URL -c '\password alvo_writer'
\set ON_ERROR_STOP on
BEGIN;

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['alvo_reader', 'alvo_writer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
        EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC, %I', current_database(), role);
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
    END LOOP;
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO alvo_writer', current_database());
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC, alvo_reader, alvo_writer;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, alvo_reader, alvo_writer;
-- By default every role may fill a disk with large objects. Only a superuser can revoke that; others get a warning.
REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM PUBLIC;

-- The schema of the tables, which a search path may prefer to public.
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO alvo_reader, alvo_writer', (
        SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'data'::regclass
    ));
END
$$;
GRANT SELECT ON signal, data, load TO alvo_reader, alvo_writer;
GRANT INSERT (name), DELETE ON signal TO alvo_writer;
GRANT INSERT, UPDATE (value), DELETE ON data TO alvo_writer;
GRANT INSERT, DELETE ON load TO alvo_writer;

COMMIT;
