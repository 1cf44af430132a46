# tdn_bench for machines with NVIDIA GPUs:
#
#   docker build --tag tdn_bench .
#   docker run --rm --gpus all --ipc host --volume "$PWD:/work" tdn_bench doctor
#
# Nobody has built or run it on a GPU yet; it is linted, and a test compares what it installs with pyproject.toml.
FROM nvidia/cuda:13.0.2-runtime-ubuntu24.04

# NVDEC, with which DALI decodes, is part of the driver and comes into the container by "video" alone.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

# g++ and Python's headers are for torch.compile, AOTInductor and Triton, which compile on first use.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv \
    && useradd --create-home --uid 1001 tdn

WORKDIR /opt/tdn_bench
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY engines engines
COPY pipelines pipelines
COPY storage storage
COPY tdn_bench tdn_bench
RUN pip install --constraint constraints.txt '.[trt]'

# A user of its own: built engines are code, so their cache must belong to whoever runs them.
USER 1001
WORKDIR /work
ENTRYPOINT ["tdn-bench"]
CMD ["--help"]
