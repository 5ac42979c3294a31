# The image of everything beside the sweep: MLflow's server, its clean-up, dumps of its database, and `ray job submit`. 0.9 GB of
# packages in place of 6.8, and no torch. Its Ray is the sweep's: the submitter speaks to the head. From the repository root:
#   docker build -f ops/docker/tools.Dockerfile -t unfreeze-tools:ray-2.60.0 .
ARG PYTHON_VERSION=3.11
FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ARG UV_VERSION=0.13.9
# The cache is a mount on another file system, where uv's hard links fail.
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /src
RUN pip install --no-cache-dir "uv==${UV_VERSION}" && uv venv --python /usr/local/bin/python3 /opt/venv
COPY ops/docker/tools.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip sync --python /opt/venv/bin/python --require-hashes tools.lock

FROM python:${PYTHON_VERSION}-slim-bookworm
ARG RAY_VERSION=2.60.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="unfreeze-tools" \
      org.opencontainers.image.description="MLflow's server and what submits a sweep of unfreeze" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="ray-${RAY_VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 1000 --create-home --shell /bin/bash unfreeze
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    VIRTUAL_ENV=/opt/venv \
    HOME=/home/unfreeze \
    PYTHONUNBUFFERED=1
WORKDIR /home/unfreeze
USER 1000:1000
CMD ["mlflow", "--version"]
