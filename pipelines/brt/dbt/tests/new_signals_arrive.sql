-- depends_on: {{ ref('posicao_onibus') }}, so that the views exist whatever the outcome.
-- The API repeats each bus's last signal until it has a newer one, so further captures prove nothing. The captures'
-- clock counts: a replay of old captures gives the result of their time. A clock that is ahead does not count.
select max(captured_until) as captured_until, max(new_signals_until) as new_signals_until
from {{ source('brt', 'brt_file') }}
where captured_until <= now()
having max(captured_until)
    > coalesce(max(new_signals_until), '-infinity') + interval '{{ var("signals_stop_after") }}'
