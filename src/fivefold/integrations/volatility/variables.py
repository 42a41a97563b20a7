"""Types of the kernel's variables, which BTF does not say: it has those of per-CPU variables only.

A table of ours by type, as C spells it; ``[]`` is an array up to the next symbol. A type that the guest's BTF lacks
leaves its variables without one. Source: Linux, the definitions of these variables, 5.4 to 6.12.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from fivefold.integrations.volatility.isf_types import VOID, IsfTypes, Json

_TABLE: Final = """
struct task_struct: init_task
struct mm_struct: init_mm efi_mm
struct files_struct: init_files
struct fs_struct: init_fs
struct cred: init_cred
struct nsproxy: init_nsproxy
struct pid_namespace: init_pid_ns
struct uts_namespace: init_uts_ns
struct user_namespace: init_user_ns
struct net: init_net
struct signal_struct: init_signals
struct list_head: modules net_namespace_list tty_drivers super_blocks vmap_area_list slab_caches ftrace_mod_maps
struct list_head: ftrace_ops_trampoline_list bpf_kallsyms file_systems
struct hlist_head *: pid_hash inode_hashtable mount_hashtable
struct kset *: module_kset
struct mod_tree_root: mod_tree
struct latch_tree_root: bpf_tree
struct tk_data: tk_core
struct printk_ringbuffer *: prb
struct printk_ringbuffer: printk_rb_static printk_rb_dynamic
struct idr: prog_idr map_idr
struct gate_struct[]: idt_table
struct atomic_notifier_head: keyboard_notifier_list
struct file_operations: socket_file_ops
struct dentry_operations: sockfs_dentry_operations
struct taint_flag[]: taint_flags
struct resource: iomem_resource ioport_resource
struct mem_section **: mem_section
struct pglist_data *[]: node_data
struct fb_info *[]: registered_fb
struct ftrace_ops *: ftrace_ops_list
struct ftrace_ops: ftrace_list_end
struct inet_hashinfo: tcp_hashinfo
struct udp_table: udp_table
struct udp_seq_afinfo: udp4_seq_afinfo udp6_seq_afinfo udplite4_seq_afinfo udplite6_seq_afinfo
struct tcp_seq_afinfo: tcp4_seq_afinfo tcp6_seq_afinfo
struct seq_operations: tcp4_seq_ops tcp6_seq_ops udp_seq_ops udp6_seq_ops raw_seq_ops raw6_seq_ops
struct seq_operations: udplite_seq_ops udplite6_seq_ops tcp_seq_ops arp_seq_ops unix_seq_ops packet_seq_ops
struct bus_type: pci_bus_type
struct boot_params: boot_params
char[]: linux_banner linux_proc_banner _text _stext _etext _sdata _edata __bss_start __bss_stop _end
char[]: __start_rodata __end_rodata __init_begin __init_end kallsyms_token_table
char *: log_buf saved_command_line
unsigned char[]: kallsyms_names kallsyms_seqs_of_names
short unsigned int[]: kallsyms_token_index
unsigned int[]: kallsyms_markers
int[]: kallsyms_offsets __start___tracepoints_ptrs __stop___tracepoints_ptrs
unsigned int: kallsyms_num_syms log_first_idx log_next_idx log_buf_len pgdir_shift ptrs_per_p4d __pgtable_l5_enabled
long unsigned int: kallsyms_relative_base page_offset_base vmalloc_base vmemmap_base module_addr_min module_addr_max
long unsigned int: phys_base max_pfn max_low_pfn min_low_pfn jiffies totalram_pages sme_me_mask
int: num_registered_fb cap_last_cap nr_threads pid_max nr_cpu_ids
function: sock_def_destruct packet_sock_destruct unix_sock_destructor netlink_sock_destruct inet_sock_destruct
void *[]: sys_call_table ia32_sys_call_table x32_sys_call_table
"""

_SPELLED: Final = re.compile(r"(?:(struct|union|enum) )?([\w ]+?) ?(\**)(\[\])?")


def variable_types(types: IsfTypes, room: Callable[[str], int | None]) -> dict[str, Json]:
    """The type of each variable of the table; *room* says how many bytes there are from one to the next symbol."""
    found = {"tk_core": core} if (core := _timekeeping(types)) is not None else {}
    for line in _TABLE.strip().splitlines():
        spelled, _, names = line.partition(": ")
        for name in names.split():
            written = _written(types, spelled, room(name))
            if written is not None:
                found[name] = written
    return found


def _written(types: IsfTypes, spelled: str, room: int | None) -> Json | None:
    match = _SPELLED.fullmatch(spelled)
    assert match is not None, spelled
    kind, name, stars, array = match.groups()
    if name == "function":
        return {"kind": "function"}
    written: Json = VOID if name == "void" else {"kind": kind or "base", "name": name}
    known = {"enum": types.enums, None: types.base_types}.get(kind, types.user_types)
    if name not in known or (kind and known[name]["size"] == 0):
        return None
    for _ in stars:
        written = {"kind": "pointer", "subtype": written}
    if array is None:
        return written
    return None if room is None else {"kind": "array", "count": room // types.size(written), "subtype": written}


def _timekeeping(types: IsfTypes) -> Json | None:
    """Before 6.13 the structure of ``tk_core`` has no name: a sequence counter, then a ``timekeeper``."""
    if "timekeeper" not in types.user_types or "tk_data" in types.user_types:
        return None
    keeper = {"kind": "struct", "name": "timekeeper"}
    counter = next((one for one in ("seqcount_raw_spinlock", "seqcount") if one in types.user_types), None)
    if counter is None:
        return None
    at = types.user_types[counter]["size"] + 7 & ~7
    fields = {"seq": {"type": {"kind": "struct", "name": counter}, "offset": 0}}
    fields["timekeeper"] = {"type": keeper, "offset": at}
    size = at + types.user_types["timekeeper"]["size"]
    types.user_types["unnamed_tk_core"] = {"kind": "struct", "size": size, "fields": fields}
    return {"kind": "struct", "name": "unnamed_tk_core"}
