"""The two Kubernetes objects that `hold` reads and writes, as far as it needs them.

`Lease` is a coordination.k8s.io/v1 Lease, `Pod` a core/v1 Pod.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A Lease; `holder` is empty if no pod holds it.

    The times are RFC 3339 with six digits of a second (metav1.MicroTime). `resource_version` is the
    API server's: a write with an older one is a conflict. `document` is the JSON that the Lease was
    read from: a write keeps what else is in it.
    """

    name: str
    holder: str = ""
    duration_s: int = 1
    acquire_time: str = ""
    renew_time: str = ""
    transitions: int = 0
    annotations: Mapping[str, str] = field(default_factory=dict)
    resource_version: str = ""
    document: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A Pod; `deleting` once it has a deletionTimestamp."""

    name: str
    ready: bool
    deleting: bool
    ip: str = ""
    node: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
