# The image that every step runs in: `make image`. Parts: packages (changes with requirements.lock), then our code.
# A release gives the base by digest: --build-arg BASE=python:3.11-slim-bookworm@sha256:…
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS packages
# cuda: what requirements.lock says. cpu: the same versions of torch built without CUDA, a tenth of the size.
ARG VARIANT=cuda
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
# an import while it is built would leave a compiled file with the time in it
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
COPY requirements.lock .
# an entry of the lock is a line "name==version" and the indented lines of its digests
RUN python3 -m venv --without-pip /opt/packages \
    && case "${VARIANT}" in \
    cuda) cp requirements.lock wanted.lock ;; \
    cpu) awk '/^[a-z]/ { out = /^(torch|torchvision|triton|cuda-|nvidia-)/ && !/^torchmetrics/ } !out' \
    requirements.lock > wanted.lock \
    && awk -F'[ ;\\\\]' '/^(torch|torchvision)==/ { print $1 "+cpu" }' requirements.lock > torch.lock \
    && python3 -m pip --python /opt/packages/bin/python install --quiet --no-compile --no-deps \
    --index-url "${CPU_INDEX}" --requirement torch.lock ;; \
    *) echo "VARIANT=${VARIANT}: give cuda or cpu" >&2; exit 1 ;; \
    esac \
    && python3 -m pip --python /opt/packages/bin/python install --quiet --no-compile --no-deps \
    --requirement wanted.lock
# compiled here, since a step cannot write beside them; by content, so that two builds come to the same bytes
RUN /opt/packages/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/packages/lib || true

# what is in it: `make sbom`
FROM packages AS listing
RUN python3 -m venv /opt/cyclonedx \
    && /opt/cyclonedx/bin/pip install --quiet cyclonedx-bom==7.5.0 \
    && /opt/cyclonedx/bin/cyclonedx-py environment --output-reproducible --output-file /sbom.json /opt/packages/bin/python
FROM scratch AS sbom
COPY --from=listing /sbom.json /

FROM packages AS project
COPY pyproject.toml README.md LICENSE ./
COPY src src
# the package reaches these by links
COPY components components
COPY pipelines pipelines
COPY deploy deploy
COPY docs docs
RUN python3 -m pip --python /opt/packages/bin/python install --quiet --no-deps --no-build-isolation --no-compile \
    --target /opt/atelier . \
    && /opt/packages/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/atelier

FROM ${BASE} AS atelier
COPY --from=packages /opt/packages /opt/packages
COPY --from=project /opt/atelier /opt/atelier
# there is no git in it: DVC reads repositories by itself, and GitPython would say so in twelve lines of each training;
# and no name of user 10001 but LOGNAME, which MLflow asks for
ENV PATH=/opt/atelier/bin:/opt/packages/bin:${PATH} \
    PYTHONPATH=/opt/atelier \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    LOGNAME=atelier \
    XDG_CACHE_HOME=/tmp/cache \
    DVC_NO_ANALYTICS=true \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_DISABLE_TELEMETRY=true
# the root file system may be read-only: only /workspace and /tmp are written to
RUN install -d -o 10001 -g 10001 -m 755 /workspace
VOLUME ["/workspace", "/tmp"]
WORKDIR /workspace
USER 10001:10001
ARG REVISION=unknown
ARG VERSION=unknown
ENV ATELIER_GIT_COMMIT=${REVISION}
LABEL org.opencontainers.image.title="Atelier" \
    org.opencontainers.image.description="A reproducible training pipeline for image generators" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.version="${VERSION}"
ENTRYPOINT ["atelier"]
CMD ["--help"]

# a registered model behind HTTP: `docker build --target serving`; MLFLOW_TRACKING_URI says where the registry is
FROM atelier AS serving
EXPOSE 5001
HEALTHCHECK --interval=30s --timeout=5s --start-period=2m \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:5001/ping', timeout=4)"]
ENTRYPOINT ["mlflow", "models", "serve", "--env-manager=local", "--host=0.0.0.0", "--port=5001", "--workers=1"]
CMD ["--help"]

# what a build without --target gives
FROM atelier
