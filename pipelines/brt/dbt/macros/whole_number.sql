{% macro whole_number(text) %}
case when {{ text }} ~ '^[0-9]{1,9}$' then ({{ text }})::integer end
{% endmacro %}
