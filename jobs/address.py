"""Joining the cluster that `RAY_ADDRESS` names, after a look whether one answers there: Ray itself asks for minutes."""

from __future__ import annotations

import json
import logging
import re
import socket
from typing import Any

import grpc
import ray
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._private.services import canonicalize_bootstrap_address
from ray._private.utils import check_version_info, compute_version_info
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationMode,
    AuthenticationTokenLoader,
    GcsClient,
    get_authentication_mode,
)
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

ANSWERS_WITHIN = 10.0  # Seconds.
_CLIENT = "ray://"
_CLIENT_PORT = 10001
_HOST = r"(?P<host>[\w.-]+|\[[\da-fA-F:.]+\])"
_TOKEN = "put the cluster's into ~/.ray/auth_token or RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token"
_FORMS = "auto (a cluster on this machine), host:port of a cluster's head (6379 by default), or ray://host:10001"


def join(address: str, **options: Any) -> None:
    """Connect to the cluster at an address: `host:port`, `ray://host:port`, or `auto`.

    Raises `ValueError`, within seconds, for what is no address, for one where no cluster answers, for a cluster that
    wants another token, and for one of another Ray or Python (of a client's, `ray://`, Ray itself says so).
    """
    place = _place(address)
    _ask(address, place, is_head=not address.startswith(_CLIENT))
    try:
        ray.init(address if address.startswith(_CLIENT) else place, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"RAY_ADDRESS: {address}: {' '.join(str(error).split())}") from None


def _place(address: str) -> str:
    """`host:port` of an address."""
    if address == "auto":
        try:
            place = canonicalize_bootstrap_address(address)
        except ConnectionError:
            place = None
        if place is None:
            raise ValueError("RAY_ADDRESS: auto: no cluster runs on this machine; without RAY_ADDRESS a job starts one")
        return str(place)
    match = re.fullmatch(rf"(?P<client>{_CLIENT})?{_HOST}(:(?P<port>\d{{1,5}}))?/?", address)
    if match is None or not (match["port"] or match["client"]) or not 0 < int(match["port"] or 1) < 2**16:
        hint = "; a dashboard's address is for `ray job submit`" if address.startswith("http") else ""
        raise ValueError(f"RAY_ADDRESS: {address!r} is not {_FORMS}{hint}")
    return f"{match['host']}:{match['port'] or _CLIENT_PORT}"


def _ask(address: str, place: str, is_head: bool) -> None:
    """Raise `ValueError` unless something that may be a cluster answers there."""
    host, _, port = place.rpartition(":")
    has_token = AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    if get_authentication_mode() == AuthenticationMode.TOKEN and not has_token:  # Ray ends the process without a word.
        raise ValueError(f"RAY_AUTH_MODE=token, and there is no token; {_TOKEN}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN).close()
    except OSError as error:
        raise ValueError(f"RAY_ADDRESS: no Ray cluster answers at {address}: {error.strerror or error}") from None
    channel = init_grpc_channel(place, [("grpc.enable_http_proxy", 0)])  # As Ray's own, whatever the shell says.
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWERS_WITHIN)
        if is_head:
            _ask_for_its_id(channel)
            known = GcsClient(place).internal_kv_get(CLUSTER_METADATA_KEY, KV_NAMESPACE_CLUSTER, timeout=ANSWERS_WITHIN)
            _refuse_other_versions(address, json.loads(known or b"{}"))
    except ray.exceptions.AuthenticationError:
        raise ValueError(f"RAY_ADDRESS: the cluster at {address} wants another token; {_TOKEN}") from None
    except (grpc.FutureTimeoutError, grpc.RpcError, ray.exceptions.RpcError) as error:
        detail = f" ({' '.join(str(error).split())})" if str(error) else ""
        raise ValueError(
            f"RAY_ADDRESS: no Ray cluster answers at {address} within {ANSWERS_WITHIN:g} s{detail}"
        ) from None
    finally:
        channel.close()


def _ask_for_its_id(channel: grpc.Channel) -> None:
    """Raise `grpc.RpcError` where something else than a head answers: Ray's own client would wait for it for ever."""
    try:
        NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=ANSWERS_WITHIN)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:  # That is for Ray's client to say.
            raise


def _refuse_other_versions(address: str, cluster: dict[str, Any]) -> None:
    """Raise `ValueError` for a cluster whose Ray or Python differs: joining it would fail later, with many words."""
    if not cluster:  # It has not come so far, or says nothing.
        return
    try:
        check_version_info(cluster, "this machine")
    except RuntimeError:
        own_ray, own_python, *_ = compute_version_info()
        raise ValueError(
            f"RAY_ADDRESS: the cluster at {address} runs Ray {cluster['ray_version']} on Python "
            f"{cluster['python_version']}, and this process Ray {own_ray} on Python {own_python}: take the cluster's "
            "versions here (infra/constraints.txt), or run the job there with `ray job submit`"
        ) from None
