# The one image of code server, runs, daemon, webserver and metrics. A user without rights, a root file system that
# may be read-only: only /tmp and DAGSTER_HOME are written to.
ARG PYTHON=python:3.12-slim

FROM ${PYTHON} AS build
WORKDIR /build
COPY requirements ./requirements
RUN python -m venv --without-pip /opt/autoopt \
    && pip --python /opt/autoopt/bin/python install --no-cache-dir --only-binary :all: -r requirements/pipeline.txt \
    && pip install --no-cache-dir --constraint requirements/dev.txt hatchling
# What no process here ever opens, a sixth of the whole: tests, an asyncio client, a web page, maps for debuggers.
RUN cd /opt/autoopt/lib/python3*/site-packages \
    && rm -r pandas/tests kubernetes/aio litellm/proxy/_experimental/out \
    && find dagster_webserver -name "*.map" -delete
COPY pyproject.toml README.md ./
COPY autoopt_pipeline ./autoopt_pipeline
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir wheels . \
    && pip --python /opt/autoopt/bin/python install --no-cache-dir --no-deps wheels/*.whl

FROM ${PYTHON}
ENV PATH=/opt/autoopt/bin:$PATH \
    DAGSTER_HOME=/opt/dagster/dagster_home \
    DAGSTER_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=1 \
    HOME=/tmp \
    LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS=True \
    LITELLM_LOCAL_MODEL_COST_MAP=True \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --home-dir /tmp --no-create-home autoopt \
    && install --directory --owner 10001 --group 10001 "$DAGSTER_HOME"
COPY --from=build /opt/autoopt /opt/autoopt
USER 10001:10001
WORKDIR /opt/dagster/dagster_home
CMD ["autoopt", "--help"]
