"""A small server that answers as MLflow's does to what a training asks, and that can fail as servers do."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class MlflowStandIn:
    """One experiment's runs in memory; `mode` is `ok`, `hang` (no answer) or `fail` (500).

    As in MLflow's SQL stores, a metric that is logged twice with the same step, time and value is one row.
    """

    def __init__(self) -> None:
        self.mode = "ok"
        self.experiment_stage = "active"
        self.runs: dict[str, dict[str, Any]] = {}
        self.models: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, bytes] = {}  # By run and path.
        self.keeps_files = True  # Else their store fails, as that of a server without access to its bucket.
        self.authorization: set[str | None] = set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def is_up(self) -> bool:
        return self._server is not None

    def start(self) -> None:
        """Listen, on the same port as before."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self, {name: one[0] for name, one in parse_qs(urlsplit(self.path).query).items()})

            def do_POST(self) -> None:
                outer._answer(self, json.loads(self._body() or "{}"))

            def do_PATCH(self) -> None:
                self.do_POST()

            def do_PUT(self) -> None:
                outer._answer(self, {"data": self._body()})

            def _body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def log_message(self, *_: Any) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, sorted."""
        return sorted((step, value) for name, step, _, value in self.runs[run_id]["metrics"] if name == key)

    def _answer(self, request: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        while self.mode == "hang":
            time.sleep(0.05)
        self.authorization.add(request.headers["Authorization"])
        status, values = (500, {}) if self.mode == "fail" else self._values(urlsplit(request.path).path, asked)
        body = json.dumps(values).encode()
        try:
            request.send_response(status)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)
        except OSError:  # Nobody waits any more.
            pass

    def _values(self, path: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name = path.rpartition("/mlflow/")[2]
        if "/mlflow-artifacts/artifacts" in path:
            if not self.keeps_files:
                return 500, {}
            return 200, self._artifacts(path.partition("/mlflow-artifacts/artifacts")[2].strip("/"), asked)
        if name.startswith("logged-models"):
            return 200, self._models(name.partition("/")[2], asked)
        if name == "runs/search":
            return 200, {"runs": [_shown(run_id, run) for run_id, run in self.runs.items() if _fits(run, asked)]}
        if name == "experiments/get-by-name":
            return 200, {"experiment": {"experiment_id": "1", "name": "x", "lifecycle_stage": self.experiment_stage}}
        if name == "runs/create":
            run_id = uuid.uuid4().hex  # MLflow's client keeps where a run's files go, whichever server had it.
            tags = {one["key"]: one["value"] for one in asked.get("tags", [])}
            run = {"stage": "active", "status": "RUNNING", "metrics": set(), "params": {}, "tags": tags}
            run |= {"datasets": [], "models_in": [], "models_out": []}
            self.runs[run_id] = run
            return 200, {"run": _shown(run_id, run)}
        run_id = asked.get("run_id", "")
        if run_id not in self.runs:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"Run with id={run_id} not found"}
        run = self.runs[run_id]
        if name == "runs/get":
            return 200, {"run": _shown(run_id, run)}
        if run["stage"] != "active":
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "The run must be in the 'active' state."}
        if name == "runs/update":
            run["status"] = asked.get("status", run["status"])
            return 200, {"run_info": _shown(run_id, run)["info"]}
        if name == "runs/set-tag":
            run["tags"][asked["key"]] = asked["value"]
        if name == "runs/log-inputs":
            run["datasets"] += asked.get("datasets", [])
            run["models_in"] += asked.get("models", [])
        if name == "runs/outputs":
            run["models_out"] += asked["models"]
        if name == "runs/log-batch":
            run["tags"].update({one["key"]: one["value"] for one in asked.get("tags", [])})
            for one in asked.get("metrics", []):
                if "model_id" in one:
                    self.models[one["model_id"]]["metrics"][one["key"]] = one | {"run_id": run_id}
            run["params"].update({one["key"]: one["value"] for one in asked.get("params", [])})
            rows = [
                (one["key"], int(one["step"]), int(one["timestamp"]), one["value"]) for one in asked.get("metrics", [])
            ]
            run["metrics"].update(rows)
        return 200, {}

    def _models(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Made, searched by a tag, or made ready."""
        if name == "search":
            return {"models": [_shown_model(one) for one in self.models.values() if _fits(one, asked)]}
        if name:
            self.models[name]["status"] = asked["status"]
            return {"model": _shown_model(self.models[name])}
        tags = {one["key"]: one["value"] for one in asked.get("tags", [])}
        model_id = f"m-{len(self.models) + 1:032x}"
        self.models[model_id] = asked | {"model_id": model_id, "status": "LOGGED_MODEL_PENDING", "metrics": {}}
        self.models[model_id]["tags"] = tags
        return {"model": _shown_model(self.models[model_id])}

    def _artifacts(self, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Stored, or the files of a folder listed."""
        if "data" in asked:
            self.artifacts[name] = asked["data"]
            return {}
        folder = asked.get("path", "").strip("/")
        paths = [path.removeprefix(f"{folder}/") for path in self.artifacts if path.startswith(f"{folder}/")]
        return {"files": [{"path": path, "is_dir": False, "file_size": 1} for path in paths if "/" not in path]}


def _fits(one: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether a filter such as "tags.`name` = 'value'" holds, or there is none."""
    found = re.fullmatch(r"tags\.`(.+)` = '(.*)'", asked.get("filter") or "")
    return found is None or one["tags"].get(found[1]) == found[2]


def _shown_model(model: dict[str, Any]) -> dict[str, Any]:
    info = {name: model[name] for name in ("model_id", "experiment_id", "name", "status")}
    info |= {"creation_timestamp_ms": 1, "artifact_uri": f"mlflow-artifacts:/models/{model['model_id']}"}
    info |= {"tags": [{"key": k, "value": v} for k, v in model["tags"].items()]}
    return {"info": info, "data": {"params": model.get("params", []), "metrics": list(model["metrics"].values())}}


def _shown(run_id: str, run: dict[str, Any]) -> dict[str, Any]:
    latest: dict[str, tuple[int, int, float]] = {}
    for key, step, when, value in run["metrics"]:
        latest[key] = max(latest.get(key, (-1, 0, 0.0)), (step, when, value))
    metrics = [{"key": key, "step": s, "timestamp": w, "value": v} for key, (s, w, v) in latest.items()]
    info = {"run_id": run_id, "run_uuid": run_id, "status": run["status"], "lifecycle_stage": run["stage"]}
    info |= {"experiment_id": "1", "artifact_uri": f"mlflow-artifacts:/{run_id}"}
    params, tags = ([{"key": k, "value": v} for k, v in run[name].items()] for name in ("params", "tags"))
    return {"info": info, "data": {"metrics": metrics, "params": params, "tags": tags}} | {
        "inputs": {"dataset_inputs": run["datasets"], "model_inputs": run["models_in"]},
        "outputs": {"model_outputs": run["models_out"]},
    }
