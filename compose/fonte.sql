-- After fonte/roles.sql: the passwords of Fonte's roles are those of .env, at each start.
\getenv reader_password FONTE_READER_PASSWORD
\getenv writer_password FONTE_WRITER_PASSWORD
ALTER ROLE fonte_reader PASSWORD :'reader_password';
ALTER ROLE fonte_writer PASSWORD :'writer_password';
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
