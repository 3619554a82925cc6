# The service in a slim image: not root, its data in a volume. It listens on all addresses of the container, and so
# needs tokens (ONCELAKE_TOKENS, see docs/operations.md).

FROM python:3.11-slim AS build
WORKDIR /src
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev
COPY pyproject.toml constraints.txt README.md ./
COPY api api
COPY ingest ingest
COPY outbox outbox
COPY service service
COPY store store
RUN python -m venv /opt/oncelake \
    && /opt/oncelake/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt .

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin oncelake \
    && install --directory --owner=oncelake --mode=0750 /data
COPY --from=build /opt/oncelake /opt/oncelake
COPY config.toml /etc/oncelake/config.toml
ENV PATH=/opt/oncelake/bin:$PATH PYTHONUNBUFFERED=1
USER oncelake
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["oncelake"]
CMD ["serve", "--config", "/etc/oncelake/config.toml", "--data", "/data", "--host", "0.0.0.0", "--port", "8000"]
