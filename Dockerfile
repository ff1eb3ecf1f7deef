# syntax=docker/dockerfile:1
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG UV_VERSION=0.13.8
RUN pip install --no-cache-dir "uv==${UV_VERSION}"
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PROJECT_ENVIRONMENT=/opt/lcp-gateway \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /src
# The dependencies alone first: they change far less often than the code.
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --locked --no-dev --all-extras --no-install-project
COPY README.md LICENSE ./
COPY lcp_gateway ./lcp_gateway
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --locked --no-dev --all-extras --no-editable

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin gateway \
 && install -d -m 0700 -o 10001 -g 10001 /var/lib/lcp-gateway
COPY --from=build /opt/lcp-gateway /opt/lcp-gateway
# GLIBC_TUNABLES and PYTHONMALLOC together give the heap huge pages: docs/operations.md, "Huge pages".
ENV GLIBC_TUNABLES="glibc.malloc.hugetlb=1" \
    PATH="/opt/lcp-gateway/bin:${PATH}" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONMALLOC=malloc \
    PYTHONUNBUFFERED=1 \
    XDG_STATE_HOME=/var/lib \
    LCP_GATEWAY_HTTP_ADDR=":8080" \
    LCP_GATEWAY_LOG_FORMAT="json"
# On this address it does not start without access control: set LCP_GATEWAY_API_KEYS or LCP_GATEWAY_AUTH=accounts, or
# LCP_GATEWAY_ALLOW_OPEN=true where the port is published on loopback only. The journal is in /var/lib/lcp-gateway:
# mount a volume there, or it goes with the container.
USER 10001:10001
EXPOSE 8080
# Liveness only: /readyz turns 503 when the daemon is away, which a restart of this container would not cure. It finds the
# address, and whether it is HTTPS, in the variables above.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-m", "lcp_gateway.cli.probe"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["lcp-gateway"]
CMD ["serve"]
