# The command line in a container, for a CPU or, with --build-arg DEVICE=cuda, for NVIDIA GPUs:
#   docker build --tag prectr .
#   docker run --rm --volume "$PWD:/work" prectr demo
# Written without Docker at hand: linted with hadolint, never built. pip's settings go in as build arguments; without a
# GPU, PIP_INDEX_URL or PIP_EXTRA_INDEX_URL leads to PyTorch's CPU wheels, or torch comes with CUDA.
FROM python:3.12-slim-bookworm

ARG DEVICE=cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# git is not copied; without this the version is that of an unreleased one
ARG SETUPTOOLS_SCM_PRETEND_VERSION

WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY packaging packaging
COPY prectr_torchrec prectr_torchrec
COPY modules modules
COPY launchers launchers
COPY configs configs

# torch goes first: what FBGEMM is built against
RUN case "$DEVICE" in \
        cpu) fbgemm='./packaging/fbgemm-gpu' ;; \
        cuda) fbgemm='fbgemm-gpu==1.8.0' ;; \
        *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir --constraint constraints.txt torch 'setuptools>=77' 'setuptools-scm>=8' \
    && pip install --no-cache-dir --constraint constraints.txt --no-build-isolation "$fbgemm" \
    && pip install --no-cache-dir --constraint constraints.txt --no-build-isolation '.[serve,trees]' \
    && pip check \
    && useradd --create-home --uid 1000 prectr

USER 1000
WORKDIR /work
ENTRYPOINT ["prectr"]
CMD ["--help"]
