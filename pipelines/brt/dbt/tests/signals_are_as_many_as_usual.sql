-- depends_on: {{ ref('posicao_onibus') }}, so that the views exist whatever the outcome.
-- Fails where the latest file has too few signals per capture, compared with the day of files before it. A file with
-- only rejected lines has none. A file with a capture whose clock was ahead does not count.
with latest as (
    select file, signals::float8 / greatest(captures, 1) as per_capture
    from {{ source('brt', 'brt_file') }}
    where captured_until <= now() or captured_until is null
    order by file desc
    limit 145
),

usual as (
    select percentile_cont(0.5) within group (order by per_capture) as per_capture
    from latest
    where file < (select max(file) from latest)
)

select latest.file, latest.per_capture, usual.per_capture as usual
from latest
cross join usual
where latest.file = (select max(file) from latest)
    and (latest.per_capture = 0 or latest.per_capture < {{ var("signals_at_least") }} * usual.per_capture)
