"""Network attachments as Multus makes them: by Debian's real CNI plugins, one after the other."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.needs import do_without

if TYPE_CHECKING:
    from tests.support.lab import Lab

# Where Debian's containernetworking-plugins puts them.
PLUGINS = Path("/usr/lib/cni")
_DEPLOY = Path(__file__).parents[2] / "deploy"

Config = dict[str, Any]


def require_plugins() -> None:
    """Skip if the CNI plugins are not installed; fail in continuous integration."""
    if not all((PLUGINS / name).exists() for name in ("macvlan", "static", "tuning")):
        do_without(f"no CNI plugins in {PLUGINS}: apt-get install containernetworking-plugins")


def shipped(overlay: str) -> Config:
    """The CNI configuration of the attachment in `deploy/overlays/<overlay>`."""
    text = (_DEPLOY / "overlays" / overlay / "networkattachment.yaml").read_text()
    config: Config = json.loads(text.partition("config: |-\n")[2])
    return config


def with_addresses(master: str) -> Config:
    """The CNI configuration of `deploy/components/cni-address`, on `master`."""
    text = (_DEPLOY / "components/cni-address/attachment.yaml").read_text()
    config: Config = json.loads(text.partition("value: |-\n")[2])
    config["plugins"][0]["master"] = master
    return config


def macvlan(master: str, ipam: Config, *, tuning: bool = True) -> Config:
    """The shipped macvlan on `master`, with `ipam`; without `tuning` the plugin of that name."""
    config = shipped("multus")
    first, *others = config["plugins"]
    first |= {"master": master, "ipam": ipam}
    return config | {"plugins": [first, *(others if tuning else ())]}


def attach(lab: Lab, interface: str, config: Config, *, ips: tuple[str, ...] = ()) -> None:
    """Have the plugins of `config` make `interface` in the pod, as a runtime on the node would.

    `ips` are those of the pod's annotation, for plugins with that capability. Raises `OSError` with
    what the plugin that failed says.
    """
    result: Config = {}
    for plugin in config["plugins"]:
        request = {key: config[key] for key in ("cniVersion", "name")} | plugin
        if request.pop("capabilities", {}).get("ips"):
            request["runtimeConfig"] = {"ips": ips}
        if result:
            request["prevResult"] = result
        result = _add(lab, interface, request)


def _add(lab: Lab, interface: str, request: Config) -> Config:
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "pod",
        "CNI_NETNS": f"/proc/{os.getpid()}/fd/{lab.pod.descriptor}",
        "CNI_IFNAME": interface,
        "CNI_PATH": str(PLUGINS),
    }
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(json.dumps(request))
        file.flush()
        script = f"exec {PLUGINS}/{request['type']} < {file.name}"
        done = lab.node.run("/bin/sh", "-c", script, env=environ)
    if done.returncode != 0:
        raise OSError(done.stdout + done.stderr)
    result: Config = json.loads(done.stdout)
    return result
