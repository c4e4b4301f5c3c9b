-- Roles of Fonte that can do no more than they need: fonte_reader for the connector, fonte_writer for the connector's
-- routes that change data and for seed.py. Run it once seed.py has made the table, and again as often as you like, as a
-- superuser, or as the owner of the database and the table if that role may create roles; then give each role its
-- password:
--   psql DATABASE_URL -f fonte/roles.sql
--   psql DATABASE_URL -c '\password fonte_reader'
\set ON_ERROR_STOP on
BEGIN;

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['fonte_reader', 'fonte_writer'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', role);
        END IF;
        EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC, %I', current_database(), role);
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), role);
    END LOOP;
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO fonte_writer', current_database());
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC, fonte_reader, fonte_writer;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, fonte_reader, fonte_writer;
-- By default every role may fill a disk with large objects. Only a superuser can revoke that; others get a warning.
REVOKE EXECUTE ON FUNCTION lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) FROM PUBLIC;

-- The schema of the table, which a search path may prefer to public.
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %s TO fonte_reader, fonte_writer', (
        SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'data'::regclass
    ));
END
$$;
GRANT SELECT ON data TO fonte_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON data TO fonte_writer;

COMMIT;
