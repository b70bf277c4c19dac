# An agent: Agent Orchestra with Celery and Flower, and the reference fleet as its app.
#
#     docker build --tag agent-orchestra .
#
# PYTHON_IMAGE names another base with Python 3.11 or newer, such as one that docker/base-images.sh made. What pip has to
# know of an index of your own is given as PIP_INDEX_URL, PIP_EXTRA_INDEX_URL or PIP_TRUSTED_HOST. docs/deployment.md
# tells how to put an app of your own into it.

ARG PYTHON_IMAGE=python:3.13-slim

# ── Build: what is installed here is copied, and pip stays behind ────────────────────────────────────────────────────

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/build && python3 -m venv --without-pip /opt/venv

# The dependencies first: they change seldom, so this step is seldom repeated.
WORKDIR /src
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > requirements.txt \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --requirement requirements.txt

COPY README.md LICENSE _orchestra_pytest.py ./
COPY orchestra orchestra
RUN /opt/build/bin/pip wheel --no-deps --wheel-dir dist . \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps dist/*.whl

# ── Run ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

FROM ${PYTHON_IMAGE}
ARG VERSION=dev
LABEL org.opencontainers.image.title="agent-orchestra" \
      org.opencontainers.image.description="An agent of Agent Orchestra: a Celery worker that says what it can." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

# The user's number is fixed, so that a volume's owner is known wherever the image runs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/* \
    && groupadd --gid 10001 agent \
    && useradd --uid 10001 --gid agent --home-dir /app --no-create-home --shell /usr/sbin/nologin agent

COPY --from=build /opt/venv /opt/venv
COPY docker/healthcheck.py /opt/agent/healthcheck.py
WORKDIR /app
COPY celeryconfig.py ./
COPY workers workers
RUN python3 -m compileall -q .

# APP is what Celery knows as --app. Nothing is written while it runs, but below /tmp.
ENV PATH=/opt/venv/bin:${PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 APP=workers
USER agent

# SIGTERM lets an agent finish what it runs. A container's first process is deaf to it until it listens, which an agent
# does seconds after its start; tini listens at once, hands it on, and takes care of what tasks leave behind.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["python", "/opt/agent/healthcheck.py"]
CMD ["celery", "worker", "--hostname", "agent@%h"]
