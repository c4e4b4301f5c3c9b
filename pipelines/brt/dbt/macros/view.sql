{#
dbt's own materialization drops the old view, and with it all views that others have built on it; a table of the same
name it drops too. This one replaces the view in place, and refuses to run where the name is taken.
#}
{% materialization view, adapter='postgres' %}
    {%- set existing = load_cached_relation(this) -%}
    {%- if existing and not existing.is_view -%}
        {{ exceptions.raise_compiler_error(
            this.schema ~ "." ~ this.identifier ~ " is no view of this pipeline: rename it, or set BRT_DATABASE_URL to another database"
        ) }}
    {%- endif -%}
    {%- set target = this.incorporate(type='view') -%}
    {% call statement('main') %}
        set local lock_timeout = '{{ var("lock_timeout") }}';
        {{ get_replace_view_sql(target, sql) }}
    {% endcall %}
    {{ adapter.commit() }}
    {{ return({'relations': [target]}) }}
{% endmaterialization %}
