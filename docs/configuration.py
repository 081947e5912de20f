"""Makes docs/configuration.md from the code: `make docs` calls it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from egress_proxy.config import hold_variables, run_variables
from egress_proxy.init import settings as init_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egress_proxy.config.variables import Variable

PAGE = Path(__file__).with_name("configuration.md")
_COMMANDS: tuple[tuple[str, str, tuple[Variable[Any], ...]], ...] = (
    ("run", "The main container forwards connections.", run_variables.VARIABLES),
    ("init", "The init container configures the egress interface.", init_settings.VARIABLES),
    (
        "hold",
        "A second container of each pod, for high availability: two pods, one reserved address.",
        hold_variables.VARIABLES,
    ),
)
# Without a default, and yet not required: one of the two variables is.
_OPTIONAL = frozenset({run_variables.DESTINATION_FILE.name})
_HEAD = """\
# Configuration

Made by `make docs` from the code; do not edit. All settings are environment variables.

- `egress-proxy check` validates them, and says what `init` and `run` would do; with `--offline` it
  validates only the text. `check --show-settings` prints the values in effect; `run --help`
  explains each variable.
- All problems are reported together, one line each: variable, line, value, reason, cure. Exit
  status 2 is a wrong configuration, 1 a problem of the pod, the node or the network.
- A duration is `500ms`, `10s`, `1m`, `1h` or plain seconds, at most 168h. A blank value is the
  default.
- A flag is off for empty, `0`, `false`, `no` and `off`, and on for anything else.
- An unknown variable that starts with `EGRESS_` is ignored with a warning that names the nearest
  known one. There is no warning for the variables that Kubernetes sets for a Service
  (`…_SERVICE_HOST`, `…_PORT…`).
"""
_TAIL = """\
## Destinations
One per line: `<port> <host> [<remote port>]`. Clients connect to `port`; the proxy connects to
`host`, an address or a DNS name. Without the third field the remote port is `port`.

- Spaces or tabs separate the fields. Empty lines, `# comments`, a comment after the fields, and
  CRLF are fine. In YAML write `|-` before the text; `>-` joins the lines.
- A name has two labels or more; an internationalised name is encoded; underscores are allowed. A
  name is looked up as it is, and then below the domains of resolv.conf's search list. With a
  **trailing dot** (`db.example.com.`) it is not looked up in the search list.
- At most 1 MiB, and each port once.

| accepted | refused |
|---|---|
| `80 172.16.12.11` | `80 999.1.1.1`, `80 010.1.1.1`: malformed addresses |
| `8443 web.example.com 443   # a comment` | `80 localhost`: a name of a single label, usually a typing error |
| `5432 2001:db8::10` | `80 http://example.com`, `80 example.com:443`, `80 *.example.com`, `80 192.0.2.0/24` |
| `443 bücher.example` | `80 127.0.0.1`, `80 169.254.169.254`: never connected to |
| `5432 db.example.com.` | a port used twice, out of range, or not in decimal digits; no destination at all |

**Never connected to**, whether written here or returned by DNS: loopback (allowed only with
`EGRESS_DNS_PROXY_SOURCE=any`), link-local, multicast, unspecified, broadcast and reserved
(240.0.0.0/4) addresses, the network and broadcast addresses of the pod's own networks, the
metadata addresses of clouds, IPv4 addresses in IPv6 form, IPv6 addresses of translators and
tunnels (NAT64, 6to4, Teredo) that lead to one of these, the networks of `EGRESS_DNS_PROXY_DENY`,
and the proxy's own listeners.

With `EGRESS_DNS_PROXY_DESTINATION_FILE` the text is in a file (a mounted ConfigMap, without
`subPath`), which is read again when it changes, and at SIGHUP. If the text has a
problem, nothing changes.
"""  # noqa: E501 - a row of a table is one line


def page() -> str:
    """The whole text."""
    sections = [_HEAD]
    for command, purpose, variables in _COMMANDS:
        rows = "\n".join(_rows(variables))
        sections.append(
            f"## egress-proxy {command}\n{purpose}\n\n"
            f"| variable | default | meaning |\n|---|---|---|\n{rows}\n"
        )
    return "\n".join([*sections, _TAIL])


def _rows(variables: tuple[Variable[Any], ...]) -> Iterator[str]:
    for variable in variables:
        if variable.default is None:
            default = "" if variable.name in _OPTIONAL else "required"
        else:
            default = f"`{variable.default}`" if variable.default else ""
        # Angle brackets would be HTML.
        meaning = variable.meaning.replace("<", "&lt;").replace("|", "\\|")
        yield f"| `{variable.name}` | {default} | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
