"""Where MLflow keeps its runs: an address that can be stored and shown, its user and password beside it."""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import Annotated

from pydantic import AfterValidator

VARIABLE = "MLFLOW_TRACKING_URI"
_SECRET_NAMES = re.compile(r"pass|pwd|secret|token|key|connect", re.IGNORECASE)

# Addresses with their user and password, by what of them may be stored and shown.  They stay in this process;
# `jobs.train` hands its own to its workers, outside of what Ray keeps of a training.
_complete: dict[str, str] = {}


def without_secrets(uri: str) -> str:
    """The address less user, password and tokens, as it may be stored and shown; this process remembers the rest."""
    scheme, found, rest = uri.partition("://")
    if not found or scheme in ("sqlite", "file"):
        return uri
    place, mark, query = rest.rpartition("@")[2].partition("?")
    kept = [one for one in query.split("&") if not _SECRET_NAMES.search(one.partition("=")[0])]
    shown = f"{scheme}://{place}" + (mark + "&".join(kept) if any(kept) else "")
    if shown != uri:
        _complete[shown] = uri
    return shown


# An address in a setting, which can be stored and shown.
Address = Annotated[str, AfterValidator(without_secrets)]


def complete_address(uri: str) -> str:
    """The address with user and password, where this process was given them: in a setting, or in the environment."""
    given = os.environ.get(VARIABLE)
    if uri not in _complete and given and without_secrets(given) == uri:
        return given
    return _complete.get(uri, uri)


def environment_for(uri: str) -> dict[str, str]:
    """The variables with which another process reaches the address as this one does: to be kept nowhere."""
    own = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    return own | {VARIABLE: complete_address(uri)}


def mask_secrets(text: str, uri: str) -> str:
    """What a library says of an address, as it may be shown."""
    complete = complete_address(uri)
    text = text.replace(complete, uri)
    login = complete.partition("://")[2].rpartition("@")[0]
    for secret in filter(None, (login, login.partition(":")[2])):
        text = text.replace(secret, "***").replace(urllib.parse.unquote(secret), "***")
    return text


def check_address(uri: str) -> None:
    """Raise `ValueError` for what cannot be one store for a driver, its workers and a restart."""
    scheme, found, rest = uri.partition("://")
    path = sqlite_path(uri) if scheme == "sqlite" else rest if found else uri.removeprefix("file:")
    if scheme == "sqlite" and path in ("", ":memory:"):
        raise ValueError(
            f"tracking.uri: {uri} is in memory, and gone with its process; write sqlite:////<absolute path>"
        )
    if (scheme in ("sqlite", "file") or not found) and not path.startswith("/") and not uri.startswith("databricks"):
        raise ValueError(
            f"tracking.uri: {uri} is relative: a job and its workers would write to two of them, and a restart could "
            "not go on; write sqlite:////<absolute path>, or the address of a server"
        )
    if scheme in ("http", "https"):
        try:
            parts = urllib.parse.urlsplit(uri)
            valid = bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"tracking.uri: {uri} is no address of a server, such as http://mlflow:5000")


def sqlite_path(uri: str) -> str:
    """The file of an `sqlite:///` address."""
    return uri.removeprefix("sqlite://").removeprefix("/").partition("?")[0]
