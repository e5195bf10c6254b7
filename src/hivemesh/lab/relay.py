"""A slow cable: relay.py ONE OTHER MILLISECONDS JITTER hands each frame of a device on to the other, later.

Frames stay in order, whatever the jitter. What the kernel says of a frame beside its bytes (a checksum still to be
made, a segment still to be cut; the virtio header of packet(7)) goes along, so the two ends may offload as they like.
"""

import random
import select
import socket
import sys
import time
from collections import deque

ETH_P_ALL = 3
SOL_PACKET, PACKET_IGNORE_OUTGOING, PACKET_VNET_HDR = 263, 23, 15
"""linux/if_packet.h"""
LARGEST = 1 << 17
"""More than a frame that the receiver has yet to cut into segments, with its header."""
MOST = 20_000
"""Frames under way; what comes on top is lost, as in any queue."""


class End:
    """One device; `queue` holds what goes out of it, with the moment it is due."""

    def __init__(self, device: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # hears nothing until it is bound
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.bind((device, ETH_P_ALL))
        self.socket.setblocking(False)
        self.queue: deque[tuple[float, bytes]] = deque()
        self.last = 0.0

    def take(self, to: "End", delay: float, jitter: float) -> None:
        """All that has come, on its way to the other end."""
        try:
            while True:
                frame = self.socket.recv(LARGEST)
                to.last = max(to.last, time.monotonic() + delay + random.uniform(-jitter, jitter))
                if len(to.queue) < MOST:
                    to.queue.append((to.last, frame))
        except BlockingIOError:
            return

    def give(self) -> float:
        """Send what is due. Seconds until the next one is."""
        while self.queue:
            wait = self.queue[0][0] - time.monotonic()
            if wait > 0:
                return wait
            try:
                self.socket.send(self.queue.popleft()[1])
            except OSError:  # a full queue of the device, a frame too long for it: lost
                continue
        return 3600.0


def main() -> None:
    one, other = End(sys.argv[1]), End(sys.argv[2])
    delay, jitter = int(sys.argv[3]) / 1000, int(sys.argv[4]) / 1000
    while True:
        wait = min(one.give(), other.give())
        select.select([one.socket, other.socket], [], [], wait)
        one.take(other, delay, jitter)
        other.take(one, delay, jitter)


if __name__ == "__main__":
    main()
