# Heads and CPU workers, from the lock file alone.  In the root of the repository:
#   docker build -f infra/images/cpu.Dockerfile -t semsam:cpu .
# TORCH_INDEX names PyTorch's index of CPU builds (its installation page does); without it the image takes the build
# for CUDA, which does as well and is some gigabytes larger.
# All machines of a cluster need the same Python and the same Ray, to the last digit: PYTHON as in gpu.Dockerfile.
ARG PYTHON=3.11.14
FROM python:${PYTHON}-slim-bookworm

# wget: KubeRay's probes.
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

# Into the system's Python: KubeRay starts Ray in a shell that knows no virtual environment.
WORKDIR /opt/semsam
COPY pyproject.toml README.md LICENSE ./
COPY infra/constraints.txt infra/
ARG TORCH_INDEX
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" -c infra/constraints.txt torch; fi \
    && pip install --no-cache-dir -c infra/constraints.txt torch setuptools \
    && pip install --no-cache-dir --no-build-isolation -c infra/constraints.txt '.[cluster,evaluation,export,serve]'

COPY semsam semsam
COPY pipelines pipelines
COPY jobs jobs
ENV PYTHONPATH=/opt/semsam PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home ray
USER 1000
