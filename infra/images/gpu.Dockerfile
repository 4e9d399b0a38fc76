# GPU workers, from the lock file for CUDA.  In the root of the repository:
#   docker build -f infra/images/gpu.Dockerfile -t semsam:gpu .
# CUDA's libraries come with torch; the machine brings the driver (for CUDA 13) and NVIDIA's container toolkit.
# All machines of a cluster need the same Python and the same Ray, to the last digit: PYTHON as in cpu.Dockerfile.
ARG PYTHON=3.11.14
FROM python:${PYTHON}-slim-bookworm

# gcc and C's headers: Triton builds a launcher once.  wget: KubeRay's probes.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev wget && rm -rf /var/lib/apt/lists/*

# Into the system's Python: KubeRay starts Ray in a shell that knows no virtual environment.
WORKDIR /opt/semsam
COPY pyproject.toml README.md LICENSE ./
COPY infra/constraints.txt infra/constraints-cuda.txt infra/
RUN pip install --no-cache-dir -c infra/constraints-cuda.txt torch setuptools \
    && pip install --no-cache-dir --no-build-isolation -c infra/constraints-cuda.txt '.[cluster,evaluation,export,serve]'

COPY semsam semsam
COPY pipelines pipelines
COPY jobs jobs
ENV PYTHONPATH=/opt/semsam PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home ray
USER 1000
