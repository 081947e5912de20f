"""Label and field selectors of the Kubernetes API, as far as tests need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Selector:
    """`labels` is ``a=b,c,!d`` (equality and existence); `name` is that of ``metadata.name``."""

    labels: str = ""
    name: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Selector:
        """That of a query; a field other than ``metadata.name`` is a ValueError."""
        field, _, name = query.get("fieldSelector", "").partition("=")
        if field not in ("", "metadata.name"):
            raise ValueError(f"field selector {field}")
        return cls(query.get("labelSelector", ""), name)

    def matches(self, item: dict[str, Any]) -> bool:
        metadata = item["metadata"]
        labels = metadata.get("labels") or {}
        if self.name and metadata["name"] != self.name:
            return False
        return all(_holds(term.strip(), labels) for term in self.labels.split(",") if term)


def _holds(term: str, labels: Mapping[str, str]) -> bool:
    key, equals, value = term.partition("=")
    value = value.removeprefix("=")
    if equals and key.endswith("!"):
        return labels.get(key[:-1]) != value
    if equals:
        return labels.get(key) == value
    return key[1:] not in labels if key.startswith("!") else key in labels
