"""Real Linux guests: booted, stopped, saved, and looked at by QEMU itself.

packages   kernel, its debug symbols and busybox, out of Debian's archive
initramfs  the guest's programs
rows       the table: which guests there are
save       one guest, from its boot to its files
consumers  debuggers and analysts' tools, and what each must find
"""


class GuestError(Exception):
    """A guest or a check that could not be made, with the reason as its message."""
