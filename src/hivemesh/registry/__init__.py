"""What registries say of images: the digest a name stands for, and the platforms it runs on."""

from hivemesh.registry.client import Registries, Unauthorized
from hivemesh.registry.reference import Reference, parse

__all__ = ["Reference", "Registries", "Unauthorized", "parse"]
