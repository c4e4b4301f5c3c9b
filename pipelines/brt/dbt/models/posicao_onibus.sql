-- By way of the key, so that it takes as long with a year of signals as with a day: from each bus to the next one,
-- and there from the latest signal back. A signal whose clock is ahead would hide all that come after it once the clock
-- is mended, and one whose clock is right all that come after the clock went ahead: of the latest one and the latest one
-- whose clock is right counts the one captured later.
with recursive buses as (
    (select id from {{ ref('stg_posicao') }} order by id limit 1)
    union all
    select (select later.id from {{ ref('stg_posicao') }} as later where later.id > buses.id order by later.id limit 1)
    from buses
    where buses.id is not null
)

select
    last.id,
    last.latitude,
    last.longitude,
    last.speed_kmh,
    last.time,
    now() - last.time as age,
    last.line,
    last.direction,
    last.route,
    last.captured_at,
    last.outside_city,
    last.clock_ahead,
    last.ignition
from buses
cross join lateral (
    (
        select * from {{ ref('stg_posicao') }} as sane
        where sane.id = buses.id and not sane.clock_ahead
        order by sane.time_ms desc
        limit 1
    )
    union all
    (
        select * from {{ ref('stg_posicao') }} as any_signal
        where any_signal.id = buses.id
        order by any_signal.time_ms desc
        limit 1
    )
    order by captured_at desc, clock_ahead
    limit 1
) as last
where buses.id is not null
