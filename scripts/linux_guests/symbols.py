"""Symbols for volatility3, made of a kernel with its debug symbols.

Its own converter reads DWARF, and is in no package registry. Types are in the
kernel once more as BTF, which is small and simple; addresses are in its symbol
table. What BTF does not have is the type of a variable: of the few that are
needed it stands here.

Runs in the environment that has pyelftools: `python symbols.py VMLINUX OUT`.

Format followed: Linux `Documentation/bpf/btf.rst`; volatility3
`schemas/schema-6.2.0.json`.
"""

import base64
import json
import struct
import sys

from elftools.elf.elffile import ELFFile

VARIABLES = {"init_task": "task_struct", "init_mm": "mm_struct", "init_nsproxy": "nsproxy"}
CONSTANTS = ("linux_banner",)
LONGEST_CONSTANT = 1024

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)
PASSED = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)  # stand for another type
# Bytes behind a type's first 12: a number, and one for each of its parts.
BEHIND = {INT: (4, 0), ARRAY: (12, 0), STRUCT: (0, 12), UNION: (0, 12), ENUM: (0, 8)}
BEHIND |= {FUNC_PROTO: (0, 8), VAR: (4, 0), DATASEC: (0, 12), DECL_TAG: (4, 0), ENUM64: (0, 12)}
ENDIAN = {"endian": "little"}
VOID = {"kind": "base", "name": "void"}


class Btf:
    """The types of a kernel."""

    def __init__(self, data: bytes):
        _, _, _, head, type_at, type_len, text_at, text_len = struct.unpack_from("<HBBIIIII", data)
        self._text = data[head + text_at : head + text_at + text_len]
        types = data[head + type_at : head + type_at + type_len]
        self.types = [(0, "", 0, False, 0, b"")]  # number 0 is void
        at = 0
        while at < len(types):
            name, info, number = struct.unpack_from("<III", types, at)
            kind, parts = info >> 24 & 0x1F, info & 0xFFFF
            once, each = BEHIND.get(kind, (0, 0))
            behind = types[at + 12 : at + 12 + once + each * parts]
            self.types.append((kind, self.name(name), parts, info >> 31 == 1, number, behind))
            at += 12 + len(behind)

    def name(self, at: int) -> str:
        return self._text[at : self._text.index(b"\0", at)].decode()

    def reference(self, number: int) -> dict:
        """How a field says that it is of a type."""
        kind, name, _, _, target, behind = self.types[number]
        match kind:
            case 0:
                return VOID
            case _ if kind in PASSED:
                return self.reference(target)
            case _ if kind in (INT, FLOAT):
                return {"kind": "base", "name": name}
            case _ if kind == PTR:
                return {"kind": "pointer", "subtype": self.reference(target)}
            case _ if kind == ARRAY:
                element, _, count = struct.unpack("<III", behind)
                return {"kind": "array", "count": count, "subtype": self.reference(element)}
            case _ if kind in (ENUM, ENUM64):
                return {"kind": "enum", "name": name or f"unnamed_{number}"}
            case _ if kind == FUNC_PROTO:
                return {"kind": "function"}
            case _:
                kinds = {STRUCT: "struct", UNION: "union"}
                return {"kind": kinds.get(kind, "struct"), "name": name or f"unnamed_{number}"}

    def fields(self, number: int) -> dict:
        """The fields of a structure or union."""
        _, _, parts, has_bits, _, behind = self.types[number]
        fields = {}
        for nth in range(parts):
            name, target, place = struct.unpack_from("<III", behind, 12 * nth)
            bits = place >> 24 if has_bits else 0
            at = place & 0xFFFFFF if has_bits else place
            reference = self.reference(target)
            field = {"type": reference, "offset": at // 8}
            if bits:
                size = self.size(target)
                start = at // (8 * size) * size
                kind = {"kind": "bitfield", "bit_position": at - 8 * start, "bit_length": bits}
                field = {"type": kind | {"type": reference}, "offset": start}
            if name == 0:
                field["anonymous"] = True
            fields[self.name(name) or f"unnamed_field_{nth}"] = field
        return fields

    def size(self, number: int) -> int:
        kind, _, _, _, target, _ = self.types[number]
        return self.size(target) if kind in PASSED else target

    def constants(self, number: int) -> dict:
        kind, _, parts, _, _, behind = self.types[number]
        layout = "<Ii" if kind == ENUM else "<Iq"
        each = struct.calcsize(layout)
        pairs = (struct.unpack_from(layout, behind, each * nth) for nth in range(parts))
        return {self.name(name): value for name, value in pairs}


def convert(elf: ELFFile) -> dict:
    """The symbols as volatility3 reads them."""
    btf = Btf(elf.get_section_by_name(".BTF").data())
    base = {"void": {"size": 0, "signed": False, "kind": "void"} | ENDIAN}
    base["pointer"] = {"size": 8, "signed": False, "kind": "int"} | ENDIAN
    types, enums = {}, {}
    for number, (kind, name, _, _, size, behind) in enumerate(btf.types):
        if kind == INT:
            encoding = struct.unpack("<I", behind)[0] >> 24
            shown = "bool" if encoding & 4 else "char" if encoding & 2 or size == 1 else "int"
            base[name] = {"size": size, "signed": bool(encoding & 1), "kind": shown} | ENDIAN
        elif kind == FLOAT:
            base[name] = {"size": size, "signed": True, "kind": "float"} | ENDIAN
        elif kind in (STRUCT, UNION):
            kinds = {STRUCT: "struct", UNION: "union"}
            entry = {"size": size, "fields": btf.fields(number), "kind": kinds[kind]}
            types.setdefault(name or f"unnamed_{number}", entry)
        elif kind in (ENUM, ENUM64):
            constants = btf.constants(number)
            entry = {"size": size, "base": "int", "constants": constants}
            enums.setdefault(name or f"unnamed_{number}", entry)
    base.setdefault("long unsigned int", {"size": 8, "signed": False, "kind": "int"} | ENDIAN)
    return {
        "metadata": {
            "linux": {},
            "producer": {"name": "ramlift-consumers", "version": "1.0.0"},
            "format": "6.2.0",
        },
        "base_types": base,
        "user_types": types,
        "enums": enums,
        "symbols": symbols(elf),
    }


def symbols(elf: ELFFile) -> dict:
    found = {}
    for symbol in elf.get_section_by_name(".symtab").iter_symbols():
        if not symbol.name or symbol["st_shndx"] == "SHN_UNDEF":
            continue
        entry = {"type": VOID, "address": symbol["st_value"]}
        if name := VARIABLES.get(symbol.name):
            entry["type"] = {"kind": "struct", "name": name}
        if symbol.name in CONSTANTS:
            text = constant(elf, symbol["st_value"])
            entry["type"] = {
                "kind": "array",
                "count": len(text),
                "subtype": {"kind": "base", "name": "char"},
            }
            entry["constant_data"] = base64.b64encode(text).decode()
        found.setdefault(symbol.name, entry)
    return found


def constant(elf: ELFFile, address: int) -> bytes:
    """The text at an address, with its NUL."""
    for segment in elf.iter_segments("PT_LOAD"):
        skipped = address - segment["p_vaddr"]
        if 0 <= skipped < segment["p_filesz"]:
            elf.stream.seek(segment["p_offset"] + skipped)
            text = elf.stream.read(LONGEST_CONSTANT)
            return text[: text.index(b"\0") + 1]
    raise ValueError(f"nothing is at {address:#x}")


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as vmlinux, open(sys.argv[2], "w") as out:
        json.dump(convert(ELFFile(vmlinux)), out)
