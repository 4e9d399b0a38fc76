# The MLflow server of infra/mlflow, from the lock file.  In the root of the repository:
#   docker build -f infra/images/mlflow.Dockerfile -t semsam:mlflow .
ARG PYTHON=3.11.14
FROM python:${PYTHON}-slim-bookworm

WORKDIR /opt/mlflow
COPY infra/constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt 'mlflow[auth]' boto3 psycopg2-binary
ENV PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home mlflow
USER 1000
