"""Types of an ISF file against a C compiler: its own BTF is read, and its program says where everything lies."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from fivefold.errors import FormatError
from fivefold.integrations.volatility.isf_types import IsfTypes
from fivefold.integrations.volatility.variables import variable_types
from fivefold.survey.names.btf import Btf

SOURCE = """
#include <stddef.h>
#include <stdio.h>
#include <string.h>
typedef struct { unsigned long long val; } kernel_cap_t;
typedef struct { unsigned long long val; } pfn_t;
enum color { RED = -1, GREEN = 5 };
struct later;
struct task {
    char comm[16];
    union { int pid; struct { short low, high; }; };
    unsigned int first : 3, second : 13;
    unsigned long long wide : 40;
    _Bool yes : 1;
    struct { unsigned char deep : 7; unsigned char last : 1; } named;
    enum color color;
    const volatile struct task *next;
    kernel_cap_t cap;
    pfn_t pfn;
    void (*call)(int);
    struct later *opaque;
    long double odd;
    struct task *table[3][2];
} __attribute__((packed));
struct task task;
#ifdef RUN
#define AT(name) printf("\\"" #name "\\": [%zu, %zu],", offsetof(struct task, name), sizeof task.name)
#define BITS(name) do { memset(&task, 0, sizeof task); task.name = -1; printf("\\"" #name "\\": \\""); \\
    for (size_t n = 0; n < sizeof task; n++) printf("%02x", ((unsigned char *)&task)[n]); printf("\\","); } while (0)
int main(void) {
    printf("{"); AT(comm); AT(pid); AT(low); AT(high); AT(named); AT(color); AT(next); AT(cap); AT(pfn); AT(call);
    AT(opaque); AT(odd); AT(table); BITS(first); BITS(second); BITS(wide); BITS(yes); BITS(named.deep);
    BITS(named.last); printf("\\"size\\": %zu}", sizeof task);
}
#endif
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """The BTF that gcc writes, and what its program prints."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc")
    place = tmp_path_factory.mktemp("c")
    (place / "a.c").write_text(SOURCE)
    subprocess.run([gcc, "-gbtf", "-c", "a.c", "-o", "a.o"], cwd=place, check=True)
    subprocess.run([gcc, "-DRUN", "a.c", "-o", "a"], cwd=place, check=True)
    section = ELFFile(io.BytesIO((place / "a.o").read_bytes())).get_section_by_name(".BTF")
    told = subprocess.run([place / "a"], capture_output=True, text=True, check=True).stdout
    return section.data(), json.loads(told)


@pytest.fixture(scope="module")
def types(compiled: tuple[bytes, dict[str, Any]]) -> IsfTypes:
    return IsfTypes(Btf(compiled[0]))


def fields(types: IsfTypes, name: str, base: int = 0) -> dict[str, tuple[int, dict[str, Any]]]:
    """Each member with its place, those of anonymous ones too, as volatility3 has them."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for member, field in types.user_types[name]["fields"].items():
        if field.get("anonymous"):
            found |= fields(types, field["type"]["name"], base + field["offset"])
        else:
            found[member] = base + field["offset"], field["type"]
    return found


def test_places_and_sizes(types: IsfTypes, compiled: tuple[bytes, dict[str, Any]]) -> None:
    """All members that are no bit fields are where the compiled program has them, and as large."""
    ours, theirs = fields(types, "task"), compiled[1]
    assert types.user_types["task"]["size"] == theirs["size"]
    checked = {name: at for name, at in theirs.items() if isinstance(at, list)}
    assert len(checked) == 13
    for name, (at, size) in checked.items():
        assert (ours[name][0], types.size(ours[name][1])) == (at, size), name


def test_bit_fields(types: IsfTypes, compiled: tuple[bytes, dict[str, Any]]) -> None:
    """The bits of each are those that the compiled program sets."""
    for name, dump in ((name, dump) for name, dump in compiled[1].items() if isinstance(dump, str)):
        at, written = fields(types, "task")[name.partition(".")[0]]
        if "." in name:
            inner, written = fields(types, written["name"])[name.partition(".")[2]]
            at += inner
        assert written["kind"] == "bitfield"
        ones = ((1 << written["bit_length"]) - 1 << written["bit_position"]) << 8 * at
        assert int.from_bytes(bytes.fromhex(dump), "little") == ones, name
        size = types.size(written["type"])
        assert written["bit_position"] + written["bit_length"] <= 8 * size, name


def test_what_the_members_are(types: IsfTypes) -> None:
    """Pointers, arrays, enumerations and functions as ISF writes them; look-alikes keep their own names."""
    of = {name: written for name, (_, written) in fields(types, "task").items()}
    assert of["next"] == {"kind": "pointer", "subtype": {"kind": "struct", "name": "task"}}
    assert of["call"] == {"kind": "pointer", "subtype": {"kind": "function"}}
    assert of["comm"] == {"kind": "array", "count": 16, "subtype": {"kind": "base", "name": "char"}}
    assert of["table"]["count"] * of["table"].get("subtype", {}).get("count", 1) == 6
    assert (of["cap"]["name"], of["pfn"]["name"]) == ("kernel_cap_t", "pfn_t")
    assert types.enums["color"]["constants"] == {"RED": -1, "GREEN": 5} and types.enums["color"]["base"] == "int"
    assert types.user_types["later"] == {"kind": "struct", "size": 0, "fields": {}}


def record(text: int, kind: int, size: int, count: int = 0, *more: int) -> bytes:
    return struct.pack(f"<III{len(more)}I", text, kind << 24 | count, size, *more)


def btf(texts: bytes, *records: bytes) -> Btf:
    body = b"".join(records)
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(texts))
    return Btf(head + body + texts)


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([record(1, 8, 1)], "more than"),  # a typedef of itself
        ([record(1, 2, 2), record(1, 8, 1)], "more than"),  # a pointer to a typedef of the pointer
        ([record(1, 4, 8, 1, 1, 77, 0)], "refers to type 77"),
        ([record(900, 4, 8)], "name begins at 900"),
    ],
)
def test_contradictions_are_refused(records: list[bytes], why: str) -> None:
    """Memory may hold anything: no endless descent, one line."""
    used = record(1, 4, 8, 1, 1, 1, 0)
    with pytest.raises(FormatError, match=why):
        IsfTypes(btf(b"\0a\0", *records, used))


def test_ints_that_are_bit_fields_themselves() -> None:
    """Kernels before 5.0 have them so: 3 bits from bit 4 of an int on."""
    found = IsfTypes(btf(b"\0a\0b\0int\0", record(5, 1, 4, 0, 4 << 16 | 3), record(1, 4, 4, 1, 3, 1, 8)))
    field = found.user_types["a"]["fields"]["b"]
    assert field["offset"] == 0 and field["type"]["bit_position"] == 12 and field["type"]["bit_length"] == 3


def test_types_of_variables_that_btf_lacks() -> None:
    """The table gives what there is a type for, arrays as far as the next symbol, and nothing that is only declared."""
    texts = b"\0task_struct\0gate_struct\0list_head\0char\0"
    found = IsfTypes(btf(texts, record(1, 4, 8), record(13, 4, 16), record(25, 7, 0), record(35, 1, 1, 0, 8)))
    given = variable_types(found, {"idt_table": 4096, "linux_banner": 77}.get)
    assert given["init_task"] == {"kind": "struct", "name": "task_struct"}
    assert given["idt_table"] == {"kind": "array", "count": 256, "subtype": {"kind": "struct", "name": "gate_struct"}}
    assert given["linux_banner"]["count"] == 77
    assert "modules" not in given and "sys_call_table" not in given and "prb" not in given


def test_values_of_enumerations() -> None:
    """Since kernel 6.0 a flag says that values have a sign, and some take 64 bits; before, all have a sign."""
    texts = b"\0a\0b\0c\0"
    newer = IsfTypes(btf(texts, record(1, 6, 4, 1, 1, 1 << 31), record(3, 19, 8, 1, 3, 5, 1), record(5, 19, 8)))
    assert newer.enums["a"] == {"size": 4, "base": "unsigned int", "constants": {"a": 1 << 31}}
    assert newer.enums["b"] == {"size": 8, "base": "long unsigned int", "constants": {"b": 1 << 32 | 5}}
    older = IsfTypes(btf(texts, record(1, 6, 4, 1, 1, 1 << 31)))
    assert older.enums["a"] == {"size": 4, "base": "int", "constants": {"a": -(1 << 31)}}
