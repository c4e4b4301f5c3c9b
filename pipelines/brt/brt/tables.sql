-- A row per signal of a vehicle, with the values of the latest capture.
CREATE TABLE IF NOT EXISTS brt_raw (
    codigo text NOT NULL,
    placa text,
    linha text,
    latitude double precision NOT NULL,
    longitude double precision NOT NULL,
    dataHora bigint NOT NULL,
    velocidade double precision,
    id_migracao_trajeto text,
    sentido text,
    trajeto text,
    hodometro double precision,
    direcao double precision,
    extra jsonb NOT NULL,
    captured_at timestamptz NOT NULL,
    first_captured_at timestamptz NOT NULL,
    PRIMARY KEY (codigo, dataHora)
);
COMMENT ON COLUMN brt_raw.extra IS 'unknown fields, and values of the wrong type for the other columns';
COMMENT ON COLUMN brt_raw.captured_at IS 'the latest capture that holds this signal';
COMMENT ON COLUMN brt_raw.first_captured_at IS 'the first capture that holds this signal';
-- A row per loaded file; dbt's tests read from it whether signals arrive.
CREATE TABLE IF NOT EXISTS brt_file (
    file text PRIMARY KEY,
    bytes bigint NOT NULL,
    modified timestamptz NOT NULL,
    signals integer NOT NULL,
    rejected integer NOT NULL,
    unread integer NOT NULL,
    captures integer NOT NULL,
    captured_until timestamptz,
    new_signals_until timestamptz,
    loaded_at timestamptz NOT NULL DEFAULT now(),
    reported boolean NOT NULL DEFAULT true
);
-- The tables of an older version lack it. ALTER TABLE would wait for readers even where nothing is to do.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'brt_file'::regclass AND attname = 'reported') THEN
        ALTER TABLE brt_file ADD COLUMN reported boolean NOT NULL DEFAULT true;
    END IF;
END $$;
COMMENT ON COLUMN brt_file.reported IS 'false: it has too many rejected lines, and no load has finished since';
COMMENT ON COLUMN brt_file.unread IS 'values that are NULL in brt_raw, because they could not be read';
COMMENT ON COLUMN brt_file.captured_until IS 'the latest capture of the file';
COMMENT ON COLUMN brt_file.new_signals_until IS 'the latest capture with a signal that no earlier one held';
-- A row per line that is no signal.
CREATE TABLE IF NOT EXISTS brt_reject (
    file text NOT NULL,
    line integer NOT NULL,
    reason text NOT NULL,
    content text NOT NULL,
    PRIMARY KEY (file, line)
);
