-- Along the key, from each bus to the next, and there from the latest signal back: a year of signals takes as long as a
-- day. Of a bus's latest signal and its latest with a right clock, the one captured later counts. The first alone would
-- hide all signals after a clock that was ahead is corrected, the second all signals after a clock jumps ahead.
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
