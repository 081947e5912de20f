#!/bin/sh
# Writes a kustomize component with the ports of Service and NetworkPolicy, one per destination:
#     deploy/ports.sh destinations > ports/kustomization.yaml
# kustomize can't make a list from a text. Run this again after each change of the destinations.
# It does not validate them; `egress-proxy check` does.
set -eu
ports=$(tr -d '\r' < "$1" | sed 's/#.*//' | awk 'NF { print $1 }')

cat << END
# Made by ports.sh from the destinations; do not edit.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
patches:
- target: {kind: Service, name: egress-router}
  patch: |-
    - op: replace
      path: /spec/ports
      value:
END
for port in $ports; do
    echo "      - {name: port-$port, port: $port, targetPort: $port}"
done
cat << END
- target: {kind: NetworkPolicy, name: egress-router}
  patch: |-
    - op: replace
      path: /spec/ingress/0/ports
      value:
END
for port in $ports; do
    echo "      - {port: $port}"
done
