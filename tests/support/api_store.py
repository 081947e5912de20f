"""What a Kubernetes API server keeps and checks: leases and pods, their versions, their changes.

As far as `egress-proxy hold` and its tests use it, and held to the real one by the tests in
``tests/cluster``. An object is its JSON.
"""

from __future__ import annotations

import copy
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from tests.support.api_selectors import Selector

Json = dict[str, Any]

# metav1.MicroTime: six digits of a second.
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
# How many changes are kept for watches that start late.
_HISTORY = 1000


class StatusError(Exception):
    """The answer to a request that fails (metav1.Status)."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(code, reason, message)
        self.code = code
        self.reason = reason
        self.message = message

    def status(self) -> Json:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }


@dataclass(frozen=True)
class Place:
    """A collection: ``leases`` or ``pods`` of a namespace."""

    resource: str
    namespace: str

    def not_found(self, name: str) -> StatusError:
        return StatusError(404, "NotFound", f'{self.resource} "{name}" not found')


def target(path: str) -> tuple[Place, str, str]:
    """The collection that a path leads to, the object's name and its subresource, or nothing."""
    match [unquote(part) for part in path.strip("/").split("/")]:
        case ["apis", "coordination.k8s.io", "v1", "namespaces", namespace, "leases", *rest]:
            place = Place("leases", namespace)
        case ["api", "v1", "namespaces", namespace, "pods", *rest]:
            place = Place("pods", namespace)
        case _:
            raise StatusError(404, "NotFound", "the server could not find the requested resource")
    name, subresource = (*rest, "", "")[:2]
    return place, name, subresource


@dataclass
class Change:
    """One event of a watch; `before` is the object of the version before, for selectors."""

    place: Place
    type: str
    version: int
    object: Json
    before: Json | None

    def seen_by(self, selector: Selector) -> Json | None:
        """The event of a watch: what begins to match is added to it, what ceases to is deleted."""
        was = self.before is not None and selector.matches(self.before)
        now = self.type != "DELETED" and selector.matches(self.object)
        if not was and not now:
            return None
        kind = "DELETED" if not now else "MODIFIED" if was else "ADDED"
        return {"type": kind, "object": self.object}


@dataclass
class Store:
    """All objects; `version` is that of the last write."""

    version: int = 100
    changes: list[Change] = field(default_factory=list)
    # Watches can't start before this version: 410.
    compacted: int = 0
    _objects: dict[tuple[Place, str], Json] = field(default_factory=dict)

    def get(self, place: Place, name: str) -> Json:
        found = self._objects.get((place, name))
        if found is None:
            raise place.not_found(name)
        return found

    def select(self, place: Place, selector: Selector) -> list[Json]:
        return [
            item
            for (where, _), item in sorted(self._objects.items(), key=lambda entry: entry[0][1])
            if where == place and selector.matches(item)
        ]

    def create(self, place: Place, item: Json) -> Json:
        name = item.get("metadata", {}).get("name", "")
        if not name:
            raise StatusError(422, "Invalid", "metadata.name: Required value")
        if (place, name) in self._objects:
            raise StatusError(409, "AlreadyExists", f'{place.resource} "{name}" already exists')
        made = copy.deepcopy(item)
        made["metadata"] |= {
            "namespace": place.namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": _now(),
        }
        _check(place, made)
        if place.resource == "pods":
            made["status"] = {"phase": "Pending"}
        return self._write(place, name, "ADDED", made)

    def update(self, place: Place, name: str, item: Json) -> Json:
        """Replace the version that `item` names; a Lease that is gone is made again."""
        if (place, name) not in self._objects and place.resource == "leases":
            return self.create(place, item)
        before = self.get(place, name)
        metadata = item.get("metadata", {})
        if metadata.get("name", name) != name:
            raise StatusError(400, "BadRequest", "the name of the object does not match the URL")
        _check(place, item)
        version = metadata.get("resourceVersion", "")
        if not version:
            message = "metadata.resourceVersion: Invalid value: must be specified for an update"
            raise StatusError(422, "Invalid", message)
        if version != before["metadata"]["resourceVersion"]:
            message = f'{place.resource} "{name}": the object has been modified'
            raise StatusError(409, "Conflict", message)
        kept = {key: before["metadata"][key] for key in ("namespace", "uid", "creationTimestamp")}
        made = copy.deepcopy(item)
        made["metadata"] |= kept
        return self._write(place, name, "MODIFIED", made)

    def patch_status(self, place: Place, name: str, patch: Json) -> Json:
        """A merge patch of the subresource: the metadata and the status change, the spec never."""
        before = self.get(place, name)
        allowed = {
            "metadata": {
                key: value
                for key, value in patch.get("metadata", {}).items()
                if key in ("labels", "annotations")
            },
            "status": patch.get("status", {}),
        }
        return self._write(place, name, "MODIFIED", _merge(before, allowed))

    def delete(self, place: Place, name: str, *, grace_s: int) -> Json:
        """Delete at once, or with a grace period only say so: the kubelet deletes with 0 later."""
        before = self.get(place, name)
        if place.resource == "pods" and grace_s > 0:
            doomed = copy.deepcopy(before)
            doomed["metadata"].setdefault("deletionTimestamp", _now())
            return self._write(place, name, "MODIFIED", doomed)
        return self._write(place, name, "DELETED", before)

    def since(self, place: Place, version: int) -> list[Change]:
        """The changes after `version`."""
        if version < self.compacted:
            raise StatusError(410, "Expired", f"too old resource version: {version}")
        return [
            change for change in self.changes if change.place == place and change.version > version
        ]

    def compact(self) -> None:
        """Forget all changes, as etcd does every five minutes."""
        self.compacted = self.version
        self.changes.clear()

    def _write(self, place: Place, name: str, kind: str, item: Json) -> Json:
        self.version += 1
        made = copy.deepcopy(item)
        made["metadata"]["resourceVersion"] = str(self.version)
        before = self._objects.get((place, name))
        if kind == "DELETED":
            del self._objects[place, name]
        else:
            self._objects[place, name] = made
        self.changes.append(Change(place, kind, self.version, made, before))
        if len(self.changes) > _HISTORY:
            self.compacted = self.changes.pop(0).version
        return made


def _check(place: Place, item: Json) -> None:
    if place.resource != "leases":
        return
    spec = item.get("spec", {})
    for name in ("leaseDurationSeconds", "leaseTransitions"):
        number = spec.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise StatusError(400, "BadRequest", f"spec.{name}: not an integer")
    for name in ("acquireTime", "renewTime"):
        time = spec.get(name)
        if time is not None and not _MICRO_TIME.fullmatch(time):
            raise StatusError(400, "BadRequest", f"spec.{name}: not a MicroTime")
    duration = spec.get("leaseDurationSeconds")
    if duration is not None and duration <= 0:
        message = "spec.leaseDurationSeconds: Invalid value: must be greater than 0"
        raise StatusError(422, "Invalid", message)
    transitions = spec.get("leaseTransitions")
    if transitions is not None and transitions < 0:
        message = "spec.leaseTransitions: Invalid value: must be greater than or equal to 0"
        raise StatusError(422, "Invalid", message)


def _merge(target: Any, patch: Any) -> Any:  # noqa: ANN401 - any JSON value (RFC 7396)
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
