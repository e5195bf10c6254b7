"""Pure: what one sandbox can know, its networks' tables in their order."""

import ipaddress
from dataclasses import dataclass

from hivemesh.model.addr import Address
from hivemesh.wire.resolver import Names


@dataclass(frozen=True, slots=True)
class Scope:
    """The tables a sandbox looks through, and what becomes of questions that none of them answers.

    A changed table makes a new scope; nobody sees half a change.
    """

    tables: tuple[Names, ...] = ()
    forward: bool = True
    ndots: bool = False

    def addresses(self, name: str) -> tuple[Address, ...] | None:
        """Of a name in lower case; None when nobody has it.

        The whole name first, in each network: the first that knows it answers, so both families of a name are of the
        same service. Then `<name>.<network>`, at each dot from the last on, since both may have dots of their own.
        """
        for table in self.tables:
            if (found := table.addresses.get(name)) is not None:
                return found
        at = name.rfind(".")
        while at > 0:
            network = name[at + 1 :]
            for table in self.tables:
                if table.name == network and (found := table.addresses.get(name[:at])) is not None:
                    return found
            at = name.rfind(".", 0, at)
        return None

    def name_of(self, packed: bytes) -> str | None:
        """`<primary name>.<network>` of an address of 4 or 16 bytes."""
        address = ipaddress.ip_address(packed)
        for table in self.tables:
            if (found := table.reverse.get(address)) is not None:
                return f"{found}.{table.name}"
        return None
