"""Makes migration streams with a real QEMU, and the truth to test them against.

firmware   the 64 KiB x86 guest
programs   small guests of other machines
virtio     a driver of virtio devices, over qtest
rows       the table: which streams there are
command    a row as a QEMU command line, with the files it needs
host       where QEMU runs: its binaries, its root directory, what they offer
process    one running QEMU and its QMP connection
scenario   what is done with it until the stream is complete
receiver   what takes the stream: a file, sockets, another QEMU
capture    sockets that a migration goes to
truth      what its RAM held at that instant
script     QEMU's own reader of streams, to compare with
"""


class StreamError(Exception):
    """A row that could not be made, with the reason as its message."""
