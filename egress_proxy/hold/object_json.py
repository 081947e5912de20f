"""The Kubernetes API's JSON, as far as `hold` needs it: leases, pods, lists, watches, errors.

Unknown fields are ignored when read, and those of a Lease are written back as they were. Text that
can't be read raises `ValueError`.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - msgspec reads annotations at run time
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from egress_proxy.hold.objects import Lease, Pod


class _Struct(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Fields are named as in JSON; a field with its default value is not written."""


class _Metadata(_Struct, frozen=True, kw_only=True):
    name: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class _LeaseSpec(_Struct, frozen=True, kw_only=True):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Lease(_Struct, frozen=True, kw_only=True):
    metadata: _Metadata = _Metadata()
    spec: _LeaseSpec = _LeaseSpec()


class _Condition(_Struct, frozen=True, kw_only=True):
    type: str = ""
    status: str = ""


class _PodSpec(_Struct, frozen=True, kw_only=True):
    node_name: str = ""


class _PodStatus(_Struct, frozen=True, kw_only=True):
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: list[_Condition] | None = None


class _Pod(_Struct, frozen=True, kw_only=True):
    metadata: _Metadata = _Metadata()
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


class _LeaseList(_Struct, frozen=True, kw_only=True):
    metadata: _Metadata = _Metadata()
    items: list[msgspec.Raw] | None = None


class _PodList(_Struct, frozen=True, kw_only=True):
    items: list[_Pod] | None = None


class _Event(_Struct, frozen=True, kw_only=True):
    type: str
    object: msgspec.Raw


class Status(_Struct, frozen=True, kw_only=True):
    """The API server's description of a failure (metav1.Status)."""

    code: int = 0
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One line of a watch.

    `lease` as it is now, or was when it was deleted; `version`: where the next watch continues,
    empty with an error; `status`: the error.
    """

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    lease: Lease | None = None
    version: str = ""
    status: Status = Status()  # noqa: RUF009 - it is frozen


_lease = msgspec.json.Decoder(_Lease)
_lease_list = msgspec.json.Decoder(_LeaseList)
_pod_list = msgspec.json.Decoder(_PodList)
_event = msgspec.json.Decoder(_Event)
_status = msgspec.json.Decoder(Status)


def encode_lease(lease: Lease) -> bytes:
    """The body of a POST, or of a PUT where the lease has a resource version.

    Labels, owners and other fields of the object that was read are in it, too.
    """
    document = msgspec.json.decode(lease.document, type=dict[str, Any]) if lease.document else {}
    metadata = {**document.get("metadata", {}), "annotations": dict(lease.annotations)}
    # With the uid of a Lease that was deleted a write would be a conflict, instead of creating it.
    metadata.pop("uid", None)
    written = _Lease(
        metadata=_Metadata(name=lease.name, resource_version=lease.resource_version),
        spec=_LeaseSpec(
            holder_identity=lease.holder,
            lease_duration_seconds=lease.duration_s,
            acquire_time=lease.acquire_time or None,
            renew_time=lease.renew_time or None,
            lease_transitions=lease.transitions,
        ),
    )
    return msgspec.json.encode(
        {
            **document,
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata | msgspec.to_builtins(written.metadata),
            "spec": document.get("spec", {}) | msgspec.to_builtins(written.spec),
        }
    )


def decode_lease(text: bytes | msgspec.Raw) -> Lease:
    found = _lease.decode(text)
    spec = found.spec
    return Lease(
        name=found.metadata.name,
        holder=spec.holder_identity or "",
        duration_s=spec.lease_duration_seconds or 1,
        acquire_time=spec.acquire_time or "",
        renew_time=spec.renew_time or "",
        transitions=spec.lease_transitions or 0,
        annotations=found.metadata.annotations or {},
        resource_version=found.metadata.resource_version,
        document=bytes(text),
    )


def decode_lease_list(text: bytes, name: str) -> tuple[Lease | None, str]:
    """The lease of that name, and the version of the list, at which a watch goes on."""
    found = _lease_list.decode(text)
    leases = [lease for item in found.items or () if (lease := decode_lease(item)).name == name]
    return (leases[0] if leases else None), found.metadata.resource_version


def decode_pods(text: bytes) -> list[Pod]:
    return [_to_pod(item) for item in _pod_list.decode(text).items or ()]


def decode_event(line: bytes) -> WatchEvent:
    """One line of a watch of leases; raises ValueError, also for an unknown type of event."""
    event = _event.decode(line)
    if event.type == "ERROR":
        return WatchEvent("ERROR", status=_status.decode(event.object))
    if event.type not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
        raise ValueError(f"a watch event of type {event.type[:80]!r}")
    lease = decode_lease(event.object)
    return WatchEvent(
        event.type,  # type: ignore[arg-type] # mypy does not narrow to a Literal by "in"
        lease=None if event.type == "BOOKMARK" else lease,
        version=lease.resource_version,
    )


def decode_status(text: bytes) -> Status:
    """The error in an answer; an empty one if the text is not a Status (a proxy's page)."""
    try:
        return _status.decode(text)
    except ValueError:
        return Status()


def encode_metadata_patch(
    labels: Mapping[str, str | None] | None, annotations: Mapping[str, str | None] | None
) -> bytes:
    """A merge patch (RFC 7396): None removes a key, other keys stay."""
    changes = {"labels": labels, "annotations": annotations}
    return msgspec.json.encode(
        {"metadata": {name: value for name, value in changes.items() if value}}
    )


def _to_pod(found: _Pod) -> Pod:
    ready = any(
        condition.type == "Ready" and condition.status == "True"
        for condition in found.status.conditions or ()
    )
    return Pod(
        name=found.metadata.name,
        ready=ready,
        deleting=found.metadata.deletion_timestamp is not None,
        ip=found.status.pod_ip,
        node=found.spec.node_name,
        labels=found.metadata.labels or {},
        annotations=found.metadata.annotations or {},
    )
