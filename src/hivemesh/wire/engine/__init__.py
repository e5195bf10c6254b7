"""Docker Engine API JSON to and from the model. Pure: values in, values out.

`requests` reads what clients send, `objects` writes what they get back, `strict` is the reading itself.
"""

from hivemesh.wire.engine.requests import SwarmInit, SwarmJoin

__all__ = ["SwarmInit", "SwarmJoin"]
