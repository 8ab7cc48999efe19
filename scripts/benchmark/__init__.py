"""Times `ramlift` against other ways to the same bytes.

goals      what shall hold, and the limits of the short form
streams    synthetic streams, and what an extraction of them must give
guest      streams of a real QEMU, and that QEMU loading them
measure    one run of a command; several commands in turn; the page cache
session    one run of the bench: its options, its streams, the commands to time
rows       the rows of the table: what is measured against what
record     the machine, and the report
"""


class BenchError(Exception):
    """What kept a row from being measured, as its message."""
