select
    codigo as id,
    latitude,
    longitude,
    velocidade as speed_kmh,
    datahora as time_ms,
    to_timestamp(datahora / 1000.0) as time,
    nullif(nullif(trim(linha), '0'), '') as line,
    nullif(sentido, '') as direction,
    nullif(trajeto, '') as route,
    direcao as heading_deg,
    hodometro as odometer_km,
    nullif(placa, '') as plate,
    case lower(extra ->> 'ignicao') when '1' then true when 'true' then true when '0' then false when 'false' then false end
        as ignition,
    {{ whole_number("extra ->> 'capacidadePeVeiculo'") }} as standing_capacity,
    {{ whole_number("extra ->> 'capacidadeSentadoVeiculo'") }} as seated_capacity,
    extra,
    captured_at,
    latitude not between {{ var('city_south') }} and {{ var('city_north') }}
        or longitude not between {{ var('city_west') }} and {{ var('city_east') }} as outside_city,
    to_timestamp(datahora / 1000.0) > first_captured_at + interval '{{ var("clock_tolerance") }}' as clock_ahead
from {{ source('brt', 'brt_raw') }}
