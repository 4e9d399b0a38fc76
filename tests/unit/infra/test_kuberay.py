"""What would be handed to Kubernetes: accepted by its schemas and KubeRay's, closed where it can be, and one whole."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.scripts.scripts import start

from infra.kuberay import render
from jobs.cluster import ROOT
from semsam.config import load_config
from tests.infra_files import INFRA, manifests, pods

KUBERNETES = "1.37"
COMPONENT = "app.kubernetes.io/component"
OURS = {"RayCluster", "RayJob"}
LOADED = manifests()
RAY = [one for one in LOADED if one[1]["kind"] in OURS]
JOBS = [one for one in LOADED if one[1]["kind"] == "RayJob"]
WITH_CLUSTER = [one for one in RAY if "clusterSelector" not in one[1]["spec"]]
POLICIES = {name.partition(":")[2]: one["spec"] for name, one in manifests("NetworkPolicy")}


def named(found: list[tuple[str, dict[str, Any]]]) -> Any:
    """A parametrisation by manifests."""
    return pytest.mark.parametrize("manifest", [one for _, one in found], ids=[name for name, _ in found])


@cache
def kuberay_schema(kind: str) -> dict[str, Any]:
    """KubeRay's definition of a kind, in which what it does not know is refused rather than dropped."""
    folder = Path(os.environ.get("SEMSAM_KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay_crds"))
    path = folder / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"no definitions of KubeRay at {folder}: set SEMSAM_KUBERAY_CRDS to the folder with {path.name}")
    definition = yaml.load(path.read_text(), yaml.CSafeLoader)
    [version] = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] |= {"x-kubernetes-preserve-unknown-fields": True}
    return strict(schema)


def strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(one) for name, one in schema.items()}
    is_object = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


@named(RAY)
def test_kuberay_knows_every_field(manifest: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(kuberay_schema(manifest["kind"])).validate(manifest)


@pytest.mark.parametrize("path", [("spec", "entrypoint"), ("spec", "rayClusterSpec", "authOptions", "mode")])
def test_a_field_that_is_wrong_or_unknown_is_found(path: tuple[str, ...]) -> None:
    [train] = [one for name, one in manifests("RayJob") if name.endswith("semsam-train")]
    validator = jsonschema.Draft7Validator(kuberay_schema("RayJob"))
    place = train
    for name in path[:-1]:
        place = place[name]
    for change in ({path[-1]: 3}, {f"{path[-1]}s": "x"}):
        kept = dict(place)
        place.update(change)
        assert not validator.is_valid(train)
        place.clear()
        place.update(kept)
    assert validator.is_valid(train)


@named([one for one in LOADED if one[1]["kind"] not in OURS])
def test_kubernetes_takes_it(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@named(RAY)
def test_kubernetes_takes_every_pod_of_it(manifest: dict[str, Any]) -> None:
    found = list(pods(manifest))
    assert found
    for spec in found:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_files_are_those_that_the_script_makes() -> None:
    made = render.rendered(load_config(render.Manifests, None, []))
    stored = {
        str(path.relative_to(INFRA / "kuberay")): path.read_text()
        for path in (INFRA / "kuberay").rglob("*.yaml")
        if path.name not in ("namespace.yaml", "network.yaml")
    }
    assert stored == {name: render.text_of(manifest) for name, manifest in made.items()}


def test_what_is_yours_is_in_all_of_it() -> None:
    yours = ["registry=registry.mine/x", "bucket=s3://mine", "tracking=http://there:1", "gpus=4", "drain=20"]
    yours.append("num_workers=[2,8]")
    made = render.rendered(load_config(render.Manifests, None, yours))
    by_hand = render.by_hand(load_config(render.Manifests, None, yours))
    text = "".join([*map(render.text_of, made.values()), *by_hand.values()])
    assert by_hand.keys() == {"namespace.yaml", "network.yaml", "mlflow/postgres.yaml", "mlflow/server.yaml"}
    assert "registry.mine/x:mlflow-" in text
    assert not re.search(r"registry\.example|my-bucket|//mlflow:", text)
    assert text.count("registry.mine/x:gpu-") == 5
    assert "nvidia.com/gpu: '4'" in text
    assert "'run.num_workers=[2,8]'" in made["jobs/train.yaml"]["spec"]["entrypoint"]
    assert {pod["terminationGracePeriodSeconds"] for pod in pods(made) if "terminationGracePeriodSeconds" in pod} == {
        50
    }


@named(JOBS)
def test_a_job_is_tried_again_ends_some_time_and_leaves_nothing_behind(manifest: dict[str, Any]) -> None:
    spec = manifest["spec"]
    assert spec["backoffLimit"] > 0
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    rules = spec["deletionStrategy"]["deletionRules"]
    # KubeRay refuses these beside rules, DeleteCluster for a cluster that is not the job's, and a pair twice.
    assert not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & spec.keys()
    pairs = [(rule["policy"], *sorted(rule["condition"].items())[:1]) for rule in rules]
    assert len(set(pairs)) == len(pairs)
    gone = {rule["policy"] for rule in rules}
    assert gone == ({"DeleteCluster", "DeleteSelf"} if "rayClusterSpec" in spec else {"DeleteSelf"})
    statuses = {rule["condition"].get("jobStatus") for rule in rules if rule["policy"] == "DeleteSelf"}
    assert statuses == {"SUCCEEDED", "FAILED"}


@named(WITH_CLUSTER)
def test_a_cluster_has_a_token_an_autoscaler_and_a_head_without_work(manifest: dict[str, Any]) -> None:
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == importlib.metadata.version("ray")
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    # With version 2 KubeRay allows no restarts in place.
    assert all(pod.get("restartPolicy", "Never") == "Never" for pod in pods(spec))


@named(WITH_CLUSTER)
def test_ray_start_knows_what_it_is_given(manifest: dict[str, Any]) -> None:
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        start.make_context("start", [f"--{name}={value}" for name, value in group["rayStartParams"].items()])


@named(WITH_CLUSTER)
def test_a_worker_has_more_time_to_go_than_it_needs_to_drain(manifest: dict[str, Any]) -> None:
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        [drain] = [
            int(one["value"])
            for one in pod["containers"][0]["env"]
            if one["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        ]
        assert 0 < drain < pod["terminationGracePeriodSeconds"] - 10
        # `ray stop` would kill at once what is to drain.
        assert "preStop" not in str(pod)


@named([one for one in LOADED if list(pods(one[1]))])
def test_no_pod_is_more_than_an_ordinary_process(manifest: dict[str, Any]) -> None:
    for pod in pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not any("hostPath" in volume for volume in pod.get("volumes", ()))
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            for amounts in container["resources"].values():
                assert {"cpu", "memory"} <= amounts.keys()
            assert container["resources"].keys() == {"requests", "limits"}
            assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")


def test_only_heads_may_speak_to_the_api_server() -> None:
    accounts = {one["metadata"]["name"]: one for _, one in manifests("ServiceAccount")}
    assert accounts["semsam-worker"]["automountServiceAccountToken"] is False
    for _, manifest in LOADED:
        for pod in pods(manifest):
            name = pod["containers"][0]["name"]
            assert pod.get("serviceAccountName") in {None, *accounts}
            if name == "ray-head":
                assert pod["serviceAccountName"] == "semsam-head"
            elif name != "ray-job-submitter":  # That of the namespace, which may do nothing.
                assert pod["automountServiceAccountToken"] is False
    assert POLICIES["semsam-api-server"]["podSelector"] == {"matchLabels": {COMPONENT: "ray-head"}}


def test_secrets_are_named_and_nowhere_written() -> None:
    known = {"semsam-tracking", "semsam-s3", "semsam-mlflow"}
    for _, manifest in LOADED:
        assert manifest["kind"] != "Secret"
        for pod in pods(manifest):
            for container in pod["containers"]:
                for one in container.get("env", ()):
                    if re.search("PASS|SECRET|TOKEN|KEY", one["name"]):
                        assert one["valueFrom"]["secretKeyRef"]["name"] in known
                for one in container.get("envFrom", ()):
                    assert one["secretRef"]["name"] in known
        assert not re.search(r"://[^/\s]*:[^/\s]*@", str(manifest))
    readme = (INFRA / "README.md").read_text()
    assert all(name in readme for name in known)


def components() -> dict[str, set[int]]:
    """The ports on which each kind of pod listens."""
    found: dict[str, set[int]] = {}

    def look(value: Any) -> None:
        if isinstance(value, dict):
            labels = value.get("metadata", {}).get("labels", {}) if isinstance(value.get("metadata"), dict) else {}
            if COMPONENT in labels and "containers" in value.get("spec", {}):
                ports = found.setdefault(labels[COMPONENT], set())
                for container in value["spec"]["containers"]:
                    ports |= {one["containerPort"] for one in container.get("ports", ())}
            for one in value.values():
                look(one)
        elif isinstance(value, list):
            for one in value:
                look(one)

    look([manifest for _, manifest in LOADED])
    return found


def selected(selector: dict[str, Any]) -> set[str]:
    """The kinds of pods that a selector means; all of them for an empty one."""
    if not selector:
        return set(components())
    exact = selector.get("matchLabels", {}).get(COMPONENT)
    expressions = [one["values"] for one in selector.get("matchExpressions", ()) if one["key"] == COMPONENT]
    return {exact} if exact else set(expressions[0])


def may_reach(source: str, target: str, port: int) -> bool:
    """Whether the policies let one kind of pod open a connection to another."""

    def allows(direction: str, key: str, pod: str, peer: str) -> bool:
        for policy in POLICIES.values():
            if pod not in selected(policy["podSelector"]):
                continue
            for rule in policy.get(direction, ()):
                ports = [one["port"] for one in rule.get("ports", ())]
                peers = [one["podSelector"] for one in rule[key] if "podSelector" in one]
                if (not ports or port in ports) and any(peer in selected(one) for one in peers):
                    return True
        return False

    return allows("egress", "to", source, target) and allows("ingress", "from", target, source)


def test_policies_speak_of_pods_that_there_are() -> None:
    assert components().keys() == {"ray-head", "ray-worker", "submitter", "mlflow", "postgres"}
    assert POLICIES["semsam-nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in POLICIES.values():
        assert selected(policy["podSelector"]) <= components().keys()


@pytest.mark.parametrize(
    ("source", "target", "port", "is_allowed"),
    [
        ("ray-worker", "ray-head", 6379, True),
        ("ray-head", "ray-worker", 31_234, True),
        ("ray-worker", "ray-worker", 31_234, True),
        ("submitter", "ray-head", 8265, True),
        ("submitter", "ray-head", 6379, False),
        ("submitter", "ray-worker", 8265, False),
        ("ray-head", "mlflow", 5000, True),
        ("ray-worker", "mlflow", 5000, True),
        ("submitter", "mlflow", 5000, False),
        ("mlflow", "postgres", 5432, True),
        ("ray-worker", "postgres", 5432, False),
        ("mlflow", "ray-head", 8265, False),
        ("postgres", "mlflow", 5000, False),
    ],
)
def test_who_may_talk_to_whom(source: str, target: str, port: int, is_allowed: bool) -> None:
    assert may_reach(source, target, port) == is_allowed


def outside(component: str) -> set[tuple[str, int]]:
    """Blocks of addresses, with ports, to which a kind of pod may open connections."""
    return {
        (peer["ipBlock"]["cidr"], port["port"])
        for policy in POLICIES.values()
        if component in selected(policy["podSelector"])
        for rule in policy.get("egress", ())
        for peer in rule["to"]
        if "ipBlock" in peer
        for port in rule["ports"]
    }


def test_an_autoscaler_reaches_the_api_server_and_jobs_reach_s3_and_names_are_found() -> None:
    assert {("0.0.0.0/0", 443), ("0.0.0.0/0", 6443)} <= outside("ray-head")
    assert ("0.0.0.0/0", 443) in outside("ray-worker") & outside("mlflow")
    assert {port for _, port in outside("submitter")} == {port for _, port in outside("postgres")} == {53}
    [block] = [rule["to"][0]["ipBlock"] for rule in POLICIES["semsam-s3"]["egress"]]
    assert "169.254.0.0/16" in block["except"]  # With a machine's metadata, its role.


def test_mlflow_is_behind_a_password_and_keeps_its_things_in_postgres_and_the_bucket() -> None:
    [server] = [one for _, one in manifests("Deployment")]
    [container] = server["spec"]["template"]["spec"]["containers"]
    arguments = dict(one.partition("=")[::2] for one in container["args"])
    assert arguments["--app-name"] == "basic-auth"
    assert arguments["--backend-store-uri"].startswith("postgresql://mlflow@mlflow-postgres:5432/")
    assert arguments["--artifacts-destination"].startswith("s3://")
    services = {one["metadata"]["name"]: one["spec"]["ports"][0]["port"] for _, one in manifests("Service")}
    assert services == {"mlflow": 5000, "mlflow-postgres": 5432}
    for one in ("mlflow:5000", "mlflow.semsam:5000"):
        assert one in arguments["--allowed-hosts"].split(",")


def run_secrets(folder: Path, there: tuple[str, ...], **variables: str) -> str:
    """What the script asks of a `kubectl` that knows some secrets: its calls, each with what it was handed."""
    kubectl = folder / "kubectl"
    known = "|".join(there) or "none"
    kubectl.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {folder}/calls\n'
        f'case "$4 $5" in "secret generic") sed "s/^/  /" >> {folder}/calls;; esac\n'
        f'case "$3" in get) echo "$5" | grep -qxE "{known}";; esac\n'
    )
    kubectl.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"} | variables
    subprocess.run(["bash", str(INFRA / "kuberay" / "secrets.sh")], env=environment, check=True, timeout=20)
    return (folder / "calls").read_text()


def test_secrets_are_drawn_and_handed_to_kubernetes_where_no_process_sees_them(tmp_path: Path) -> None:
    calls = run_secrets(tmp_path, (), AWS_ACCESS_KEY_ID="an-id", AWS_SECRET_ACCESS_KEY="a-key", HOME="x")
    values = re.findall(r"^  ([\w-]+)=(\S+)$", calls, re.MULTILINE)
    names = {"username", "password", "database-password", "session-key", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert {name for name, _ in values} == names
    drawn = [value for name, value in values if name in {"password", "database-password", "session-key"}]
    assert len(set(drawn)) == 3
    assert all(len(value) > 24 for value in drawn)
    arguments = [line for line in calls.splitlines() if not line.startswith("  ")]
    assert not any(value in line for line in arguments for _, value in values if value != "admin")
    made = re.findall(r"create secret generic (\S+)", calls)
    used = {
        one
        for _, manifest in LOADED
        for one in re.findall(r"'(?:name)': '(semsam-(?:tracking|mlflow|s3))'", str(manifest))
    }
    assert set(made) == used


def test_secrets_that_are_there_stay(tmp_path: Path) -> None:
    calls = run_secrets(tmp_path, ("semsam-tracking", "semsam-mlflow"))
    assert "create secret" not in calls
