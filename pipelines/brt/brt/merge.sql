-- Merge a file's signals, in the table incoming, into brt_raw. The latest capture's values count, and within a capture
-- those of the last line.
INSERT INTO brt_raw (
    codigo, placa, linha, latitude, longitude, dataHora, velocidade, id_migracao_trajeto, sentido, trajeto, hodometro,
    direcao, extra, captured_at, first_captured_at
)
SELECT DISTINCT ON (codigo, dataHora)
    codigo, placa, linha, latitude, longitude, dataHora, velocidade, id_migracao_trajeto, sentido, trajeto, hodometro,
    direcao, extra, captured_at, min(captured_at) OVER (PARTITION BY codigo, dataHora)
FROM pg_temp.incoming
ORDER BY codigo, dataHora, captured_at DESC, line DESC
ON CONFLICT (codigo, dataHora) DO UPDATE SET
    placa = excluded.placa,
    linha = excluded.linha,
    latitude = excluded.latitude,
    longitude = excluded.longitude,
    velocidade = excluded.velocidade,
    id_migracao_trajeto = excluded.id_migracao_trajeto,
    sentido = excluded.sentido,
    trajeto = excluded.trajeto,
    hodometro = excluded.hodometro,
    direcao = excluded.direcao,
    extra = excluded.extra,
    captured_at = excluded.captured_at
WHERE excluded.captured_at >= brt_raw.captured_at;
-- Separate from the values: an older file may be loaded after a newer one.
UPDATE brt_raw SET first_captured_at = earlier.captured_at
FROM (SELECT codigo, dataHora, min(captured_at) AS captured_at FROM pg_temp.incoming GROUP BY 1, 2) AS earlier
WHERE (brt_raw.codigo, brt_raw.dataHora) = (earlier.codigo, earlier.dataHora)
    AND earlier.captured_at < brt_raw.first_captured_at;
