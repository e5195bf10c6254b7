"""Pure functions from the node view to what each namespace of this node should hold."""

from hivemesh.dataplane.plan.facts import GatewayLease, HostFacts, HostPort
from hivemesh.dataplane.plan.host import plan_host
from hivemesh.dataplane.plan.ingress import plan_ingress
from hivemesh.dataplane.plan.overlay import plan_overlay
from hivemesh.dataplane.plan.sandbox import plan_sandbox

__all__ = [
    "GatewayLease",
    "HostFacts",
    "HostPort",
    "plan_host",
    "plan_ingress",
    "plan_overlay",
    "plan_sandbox",
]
