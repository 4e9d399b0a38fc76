"""Kubernetes' manifests: `python infra/kuberay/render.py [field=value ...]` writes cluster.yaml and jobs/*.yaml.

    python infra/kuberay/render.py bucket=s3://mine registry=registry.mine/semsam output=/tmp/semsam

What is committed beside this file comes from the defaults.  Another folder also gets the manifests that are written by
hand, those of MLflow with what is yours.  Jobs that need machines bring a cluster of their own, which ends with them: a
retry begins with a new head.  Those that read and write a few files run on the head of cluster.yaml.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from jobs.arguments import read_arguments
from jobs.cluster import main_exit
from semsam.config import Count, PlainName, Positive, settings

HEADER = "# Made by infra/kuberay/render.py: change it there, or give it settings.\n"
HERE = Path(__file__).resolve().parent
CODE = "/opt/semsam"  # Where the images have this repository.
DAY = 86_400  # Seconds; as long as a job waits for spot machines that are not to be had.


@settings
class Manifests:
    """What is yours in the manifests."""

    output: str = str(HERE)
    registry: str = "registry.example/semsam"  # Of the images, whose tags are cpu-<tag>, gpu-<tag> and mlflow-<tag>.
    tag: str = "0.1.0"
    bucket: str = "s3://my-bucket"
    tracking: str = "http://mlflow:5000"
    run: PlainName = "seven-swin-tiny"
    # Of the training: a number, or [least, most], between which it goes with the spot machines that are to be had.
    num_workers: Positive | tuple[Positive, Positive] = (8, 16)
    steps: Positive = 368_750
    gpu_nodes: Positive = 2  # At most, as pods of one machine each.
    gpus: Positive = 8  # Of a machine.
    gpu_node_cpus: Positive = 96
    gpu_node_memory: str = "768Gi"
    cpu_nodes: Positive = 16
    cpus: Positive = 30
    cpu_node_memory: str = "112Gi"
    # Seconds that a worker which has to go gives its work, and what its pod has on top of them: Ray's own end.  A cloud
    # that gives less notice (Google's spot machines: 25 s) ends both sooner.
    drain: Count = 90
    grace: Count = 30


def train_command(job: Manifests) -> str:
    """The training of the RayJob."""
    count = job.num_workers if isinstance(job.num_workers, int) else "[{},{}]".format(*job.num_workers)
    workers = shlex.quote(f"run.num_workers={count}")
    return (
        f"python -m jobs.train {CODE}/jobs/configs/seven_swin_tiny.yaml data.root={job.bucket}/shards "
        f"model.init={job.bucket}/models/swin_tiny run.storage={job.bucket}/runs run.name={job.run} "
        f"{workers} run.wait_for_resources={DAY} training.steps={job.steps} "
        f"tracking.uri={job.tracking}"
    )


def rendered(job: Manifests) -> dict[str, dict[str, Any]]:
    """Every manifest by the name of its file."""
    bucket, track = job.bucket, f"tracking.uri={job.tracking}"
    run, last = f"{bucket}/runs/{job.run}", f"{bucket}/runs/{job.run}/checkpoint-{job.steps}"
    evaluation, config = f"{bucket}/evaluations/{job.run}", f"{CODE}/jobs/configs"
    roots = [
        f"datasets.{name}.root={bucket}/native/{folder}"
        for name, folder in (
            ("sa1b", "sa1b"),
            ("coco_panoptic", "coco"),
            ("objects365", "objects365"),
            ("ade20k", "ADEChallengeData2016"),
            ("pascal_part", "pascal_part"),
            ("paco", "paco"),
            ("partimagenet", "partimagenet"),
        )
    ]
    actors = f"num_actors={job.gpus} gpus_per_actor=1 wait_for_resources={DAY}"
    evaluate = f"python -m jobs.evaluate data={bucket}/shards {actors} {track}"
    cpu, gpu = worker_group(job, "cpu"), worker_group(job, "gpu")
    with_cluster = {
        "prepare": (
            f"python -m jobs.prepare {config}/prepare_all.yaml {' '.join(roots)} output={bucket}/shards "
            f"wait_for_resources={DAY}",
            7 * DAY,
            [cpu],
        ),
        "train": (train_command(job), 21 * DAY, [gpu]),
        "follow": (f"{evaluate} follow=true checkpoint={run} output={evaluation}", 21 * DAY, [gpu]),
        "evaluate": (f"{evaluate} checkpoint={last} output={evaluation}/checkpoint-{job.steps}", 2 * DAY, [gpu]),
        "generate": (
            f"python -m jobs.generate {config}/generate.yaml images={bucket}/photos output={bucket}/masks "
            f"checkpoint={last} {actors}",
            7 * DAY,
            [gpu],
        ),
    }
    newer = f"{evaluation}/checkpoint-{job.steps}"
    on_the_head = {
        "compare": f"python -m jobs.compare {bucket}/evaluations/before {newer}",
        "report": f"python -m jobs.report {newer} output={newer}/report.html",
        "track": f"python -m jobs.track {run} {track}",
        "export": f"python -m jobs.export checkpoint={last} out={bucket}/models/{job.run}",
        "verify": f"python -m jobs.verify {bucket}/shards",
    }
    files = {"cluster.yaml": ray_object("RayCluster", "semsam", cluster(job, [cpu, gpu]))}
    for name, (command, deadline, groups) in with_cluster.items():
        files[f"jobs/{name}.yaml"] = ray_job(job, name, command, deadline, cluster(job, groups))
    for name, command in on_the_head.items():
        files[f"jobs/{name}.yaml"] = ray_job(job, name, command, DAY, None)
    return files


def ray_job(job: Manifests, name: str, command: str, deadline: int, own: dict[str, Any] | None) -> dict[str, Any]:
    """A job on a cluster of its own, or on the one of cluster.yaml.

    It is idempotent: a retry goes on from what is stored.  What is left of it goes away by itself, the cluster after
    minutes (an hour's quarter to look at its logs where it failed), the object after a week.
    """
    minutes = {"SUCCEEDED": 5, "FAILED": 15}
    rules = [
        {"policy": "DeleteCluster", "condition": {"jobStatus": status, "ttlSeconds": 60 * ttl}}
        for status, ttl in minutes.items()
    ]
    # That of a job whose deadline came, whatever Ray says of it.
    rules.append({"policy": "DeleteCluster", "condition": {"jobDeploymentStatus": "Failed", "ttlSeconds": 15 * 60}})
    rules = rules if own is not None else []
    rules += [{"policy": "DeleteSelf", "condition": {"jobStatus": status, "ttlSeconds": 7 * DAY}} for status in minutes]
    where = {"clusterSelector": {"ray.io/cluster": "semsam"}} if own is None else {"rayClusterSpec": own}
    spec = {
        "entrypoint": command,
        "submissionMode": "K8sJobMode",
        "backoffLimit": 5 if own is not None else 2,
        "preRunningDeadlineSeconds": 1800,
        "activeDeadlineSeconds": deadline,
        "deletionStrategy": {"deletionRules": rules},
        "submitterConfig": {"backoffLimit": 3},
        "submitterPodTemplate": {
            "metadata": {"labels": labels("submitter")},
            "spec": pod(job, "ray-job-submitter", "cpu", "500m", "1Gi", "head") | {"restartPolicy": "Never"},
        },
        **where,
    }
    return ray_object("RayJob", f"semsam-{name}", spec)


def cluster(job: Manifests, groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A head on which nothing runs but Ray, its autoscaler and the jobs' drivers, and the kinds of its workers."""
    head = pod(job, "ray-head", "cpu", "4", "16Gi", "head", secrets=True)
    head["serviceAccountName"] = "semsam-head"
    head["containers"][0]["ports"] = [
        {"name": name, "containerPort": port}
        for name, port in (
            ("gcs-server", 6379),
            ("dashboard", 8265),
            ("client", 10001),
            ("metrics", 8080),
            ("as-metrics", 44217),  # The autoscaler's
            ("dash-metrics", 44227),  # and the dashboard's.
        )
    ]
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": 120,
            "resources": resources("500m", "1Gi"),
            "securityContext": UNPRIVILEGED,
        },
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": {"metadata": {"labels": labels("ray-head")}, "spec": head},
        },
        "workerGroupSpecs": list(groups),
    }


def worker_group(job: Manifests, kind: str) -> dict[str, Any]:
    """Workers of a kind, none as long as nobody needs one; a pod fills a machine."""
    gpu = kind == "gpu"
    cpus, memory = (job.gpu_node_cpus, job.gpu_node_memory) if gpu else (job.cpus, job.cpu_node_memory)
    spec = pod(job, "ray-worker", kind, str(cpus), memory, kind, secrets=True)
    spec |= {
        "serviceAccountName": "semsam-worker",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": job.drain + job.grace,
        "tolerations": [{"key": "semsam/spot", "operator": "Exists", "effect": "NoSchedule"}],
    }
    container = spec["containers"][0]
    container["env"].append({"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(job.drain)})
    container["ports"] = [{"name": "metrics", "containerPort": 8080}]
    if gpu:
        spec["tolerations"].append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
        spec["affinity"] = ONE_ZONE
        for amounts in container["resources"].values():
            amounts["nvidia.com/gpu"] = str(job.gpus)
    return {
        "groupName": kind,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": job.gpu_nodes if gpu else job.cpu_nodes,
        "rayStartParams": {},
        "template": {"metadata": {"labels": labels("ray-worker") | {"semsam/group": kind}}, "spec": spec},
    }


def pod(
    job: Manifests, name: str, image: str, cpu: str, memory: str, pool: str, secrets: bool = False
) -> dict[str, Any]:
    """A pod of one container that may do nothing but its work, on the machines of a pool."""
    container: dict[str, Any] = {
        "name": name,
        "image": f"{job.registry}:{image}-{job.tag}",
        "resources": resources(cpu, memory),
        "securityContext": UNPRIVILEGED,
    }
    if secrets:
        container["env"] = [
            {
                "name": f"MLFLOW_TRACKING_{key.upper()}",
                "valueFrom": {"secretKeyRef": {"name": "semsam-tracking", "key": key}},
            }
            for key in ("username", "password")
        ]
        # Not there where the service accounts have a role of their own.
        container["envFrom"] = [{"secretRef": {"name": "semsam-s3", "optional": True}}]
    return {
        "nodeSelector": {"semsam/pool": pool},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }


def resources(cpu: str, memory: str) -> dict[str, dict[str, str]]:
    """As much as may be used is set aside: a pod over its memory dies, not its neighbour."""
    return {what: {"cpu": cpu, "memory": memory} for what in ("requests", "limits")}


def labels(component: str) -> dict[str, str]:
    """What network.yaml and Prometheus know a pod by."""
    return {"app.kubernetes.io/part-of": "semsam", "app.kubernetes.io/component": component}


def ray_object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "semsam", "labels": {"app.kubernetes.io/part-of": "semsam"}}
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
ONE_ZONE = {
    "podAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {
                "weight": 100,
                "podAffinityTerm": {
                    "topologyKey": "topology.kubernetes.io/zone",
                    "labelSelector": {"matchLabels": {"semsam/group": "gpu"}},
                },
            }
        ]
    }
}


def by_hand(job: Manifests) -> dict[str, str]:
    """The files that are not made here, with what is yours in place of the defaults."""
    found = {name: (HERE / name).read_text() for name in ("namespace.yaml", "network.yaml")}
    found |= {f"mlflow/{path.name}": path.read_text() for path in sorted((HERE.parent / "mlflow").glob("*.yaml"))}
    usual = Manifests()
    swaps = {
        f"{usual.registry}:mlflow-{usual.tag}": f"{job.registry}:mlflow-{job.tag}",
        f"{usual.bucket}/": f"{job.bucket}/",
    }
    for old, new in swaps.items():
        found = {name: text.replace(old, new) for name, text in found.items()}
    return found


class _Plain(yaml.SafeDumper):
    """Without anchors: what is the same in two places is written twice, as people do."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text_of(manifest: dict[str, Any]) -> str:
    """The file of a manifest."""
    return HEADER + yaml.dump(manifest, Dumper=_Plain, sort_keys=False, width=1000)


def main(arguments: Sequence[str]) -> None:
    """Write the files; the last line says where."""
    job = read_arguments(Manifests, arguments, __doc__)
    written = {name: text_of(manifest) for name, manifest in rendered(job).items()}
    if Path(job.output).resolve() != HERE:
        written |= by_hand(job)
    for name, text in written.items():
        path = Path(job.output) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(f"manifests in {job.output}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
