"""`make bench`: every comparison in one lab, side by side. Arguments choose among: mesh, converge, footprint."""

import sys
import time

from bench import converge, footprint, mesh, rig

PARTS = ("footprint", "mesh", "converge")


def main() -> None:
    chosen = sys.argv[1:] or PARTS
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        sys.exit(f"unknown benchmark {unknown[0]}: choose among {', '.join(PARTS)}")
    with rig.lab() as bed:
        if "footprint" in chosen:
            time.sleep(footprint.QUIET)
            footprint.main(bed, "no task")
        if "mesh" in chosen:
            mesh.main(bed)
        if "converge" in chosen:
            converge.main(bed)


main()
