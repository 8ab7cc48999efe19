"""Registers of a stopped QEMU's vCPUs, set through its gdb stub.

A guest that does nothing has registers of zeros, which prove little. Here each
register gets bytes of its own.
"""

import re
import socket
from pathlib import Path

from . import StreamError

SOCKET = "gdb.sock"
SECONDS = 20

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
TAG = re.compile(r"<([\w:]+)((?:\s+[\w:]+=(?:\"[^\"]*\"|'[^']*'))*)\s*/?>")
ATTRIBUTE = re.compile(r"([\w:]+)=[\"']([^\"']*)[\"']")

# What would change the mode of the processor, or is checked by QEMU.
FIXED = re.compile(
    r"""^(cr\d|efer|[cdefgs]s|[fg]s_base|k_gs_base|eflags|mxcsr  # x86
    |cpsr|fp[sc]r|.*_EL\d|fpscr                                # Arm
    |msr|pc|nip|lpcr|hid0|pvr|pir|fpscr|vscr|decr|tb[lu]       # POWER
    |pswm|pswa|prefix|todpreg|fpc|cputm|ckc                    # IBM Z
    |gsd|gssm|gsepl.*|gs_reserved                               # not saved without the feature
    |priv|virt|mstatus|satp|misa|f(flags|csr|rm)|.*ip$|.*ie$   # RISC-V
    )$""",
    re.VERBOSE,
)


# Targets whose stub has every register of the processor, and ends QEMU at some.
TAKEN = {"riscv64": re.compile(r"^(ra|sp|gp|tp|fp|[ast]\d+|f[ast]\d+)$")}


class Stub:
    """The gdb stub of a QEMU that was started with `arguments`."""

    def __init__(self, directory: Path):
        self._channel = socket.socket(socket.AF_UNIX)
        self._channel.settimeout(SECONDS)
        self._channel.connect(str(directory / SOCKET))
        self._file = self._channel.makefile("rb")
        self.ask("qSupported:multiprocess+;xmlRegisters=i386,arm,mips")

    def ask(self, packet: str) -> str:
        """Sends a packet; returns the answer."""
        data = packet.encode("latin-1")
        self._channel.sendall(b"$%s#%02x" % (data, sum(data) & 0xFF))
        while (byte := self._file.read(1)) != b"$":
            if not byte:
                raise StreamError("the gdb stub has gone")
        answer = bytearray()
        while (byte := self._file.read(1)) != b"#":
            # `}` stands before a byte that is changed, `*` before a count.
            if byte == b"}":
                answer.append(self._file.read(1)[0] ^ 0x20)
            elif byte == b"*":
                answer.extend(answer[-1:] * (self._file.read(1)[0] - 29))
            else:
                answer.extend(byte)
        self._file.read(2)
        self._channel.sendall(b"+")
        return answer.decode("latin-1")

    def features(self) -> list[tuple[int, str, int]]:
        """Number, name and bytes of each register."""
        registers, files, number = [], ["target.xml"], 0
        while files:
            # Not read as XML: its prefixes are bound nowhere.
            text = COMMENT.sub("", self._xml(files.pop(0)))
            for tag, text in TAG.findall(text):
                attributes = dict(ATTRIBUTE.findall(text))
                if tag == "xi:include":
                    files.append(attributes["href"])
                elif tag == "reg":
                    number = int(attributes.get("regnum", number))
                    size = int(attributes["bitsize"]) // 8
                    registers.append((number, attributes["name"], size))
                    number += 1
        return registers

    def _xml(self, name: str) -> str:
        text = ""
        while True:
            part = self.ask(f"qXfer:features:read:{name}:{len(text):x},ffb")
            if part[:1] not in ("m", "l"):
                raise StreamError(f"the gdb stub has no {name}")
            text += part[1:]
            if part[0] == "l":
                return text

    def threads(self) -> list[str]:
        """The vCPUs, as the stub calls them."""
        found, part = [], self.ask("qfThreadInfo")
        while part[:1] == "m":
            found += part[1:].split(",")
            part = self.ask("qsThreadInfo")
        return found

    def close(self) -> None:
        """Leaves QEMU stopped as it is."""
        self._channel.close()


def arguments() -> list[str]:
    """What QEMU is to be started with."""
    return ["-gdb", f"unix:{SOCKET},server=on,wait=off"]


def set_registers(directory: Path, binary: str, mode: tuple[tuple[str, int], ...]) -> int:
    """Gives each register of each vCPU bytes of its own, and those of `mode` what
    it says. Returns how many took it."""
    stub = Stub(directory)
    try:
        features = stub.features()
    except StreamError:
        # Targets that do not describe their registers: MIPS.
        stub.close()
        return 0
    count = 0
    for vcpu, thread in enumerate(stub.threads()):
        stub.ask(f"Hg{thread}")
        by_name = {name: (number, size) for number, name, size in features}
        for name, value in mode:
            number, size = by_name[name]
            _set(stub, number, value.to_bytes(size, "little"))
        for number, name, size in features:
            is_taken = TAKEN[binary].match(name) if binary in TAKEN else not FIXED.match(name)
            if is_taken and name not in dict(mode):
                value = bytes((number * 7 + vcpu * 31 + at * 13 + 1) & 0x7F for at in range(size))
                count += _set(stub, number, value)
    stub.close()
    return count


def _set(stub: Stub, number: int, value: bytes) -> bool:
    return stub.ask(f"P{number:x}={value.hex()}") == "OK"
