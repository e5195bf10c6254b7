"""`make bench`: every comparison side by side. Arguments choose among them, by the names in `PARTS`."""

import sys
import time

from bench import api, converge, costs, create, dns, footprint, heal, mesh, names, rig, vip

WITH_CONTAINERS = ("footprint", "mesh", "vip", "converge", "costs")
WITH_PROCESSES = ("dns", "names", "create", "api")
"""Their tasks are plain processes: what is measured begins when one starts, whoever starts it."""
WITH_SEVERAL_MANAGERS = ("heal",)
PARTS = WITH_CONTAINERS + WITH_PROCESSES + WITH_SEVERAL_MANAGERS


def main() -> None:
    chosen = sys.argv[1:] or PARTS
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        sys.exit(f"unknown benchmark {unknown[0]}: choose among {', '.join(PARTS)}")
    if set(chosen) & set(WITH_CONTAINERS):
        with rig.lab() as bed:
            if "footprint" in chosen:
                time.sleep(footprint.QUIET)
                footprint.main(bed, "no task")
            if "mesh" in chosen:
                mesh.main(bed)
            if "vip" in chosen:
                vip.main(bed)
            if "converge" in chosen:
                converge.main(bed)
            if "costs" in chosen:
                costs.main(bed)
    if set(chosen) & set(WITH_PROCESSES):
        with rig.lab(engine="process") as bed:
            if "dns" in chosen:
                dns.main(bed)
            if "names" in chosen:
                names.main(bed)
            if "create" in chosen:
                create.main(bed)
            if "api" in chosen:
                api.main(bed)
    if "heal" in chosen:
        heal.main()


main()
