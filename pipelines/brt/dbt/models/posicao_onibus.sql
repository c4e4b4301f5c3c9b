-- A signal whose clock is ahead would hide all that come after it: it counts only where a bus has no other.
select distinct on (id)
    id,
    latitude,
    longitude,
    speed_kmh,
    time,
    now() - time as age,
    line,
    direction,
    route,
    captured_at,
    outside_city,
    clock_ahead
from {{ ref('stg_posicao') }}
order by id, clock_ahead, time desc
