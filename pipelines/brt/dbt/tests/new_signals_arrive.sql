-- depends_on: {{ ref('posicao_onibus') }}, so that the views are there whatever the outcome.
-- The API repeats each bus's last signal for as long as it has no newer one, so captures that go on prove nothing. The
-- clock is that of the captures: a replay of old ones is judged as they were then.
select max(captured_until) as captured_until, max(new_signals_until) as new_signals_until
from {{ source('brt', 'brt_file') }}
having max(captured_until)
    > coalesce(max(new_signals_until), '-infinity') + interval '{{ var("signals_stop_after") }}'
