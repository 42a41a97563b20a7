"""What can be written, by name and by MSR index.

Sources: Intel SDM volume 4, "Architectural MSRs"; AMD APM volume 2, "MSR Cross-Reference".
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Register(Enum):
    """What can be written. From GDTR on they hold addresses, by LGDT, LIDT, LLDT, LTR or WRMSR."""

    CR0 = "CR0"
    CR3 = "CR3"
    CR4 = "CR4"
    EFER = "EFER"
    PKRS = "IA32_PKRS"
    PAT = "IA32_PAT"
    U_CET = "IA32_U_CET"
    S_CET = "IA32_S_CET"
    UINTR_MISC = "IA32_UINTR_MISC"
    FRED_STKLVLS = "IA32_FRED_STKLVLS"
    GDTR = "GDTR base"
    IDTR = "IDTR base"
    LDTR = "LDT base"
    TR = "TSS base"
    FS_BASE = "FS base"
    GS_BASE = "GS base"
    KERNEL_GS_BASE = "KernelGSBase"
    LSTAR = "LSTAR"
    CSTAR = "CSTAR"
    SYSENTER_ESP = "SYSENTER_ESP"
    SYSENTER_EIP = "SYSENTER_EIP"
    DS_AREA = "IA32_DS_AREA"
    RTIT_ADDR0_A = "IA32_RTIT_ADDR0_A"
    RTIT_ADDR0_B = "IA32_RTIT_ADDR0_B"
    RTIT_ADDR1_A = "IA32_RTIT_ADDR1_A"
    RTIT_ADDR1_B = "IA32_RTIT_ADDR1_B"
    RTIT_ADDR2_A = "IA32_RTIT_ADDR2_A"
    RTIT_ADDR2_B = "IA32_RTIT_ADDR2_B"
    RTIT_ADDR3_A = "IA32_RTIT_ADDR3_A"
    RTIT_ADDR3_B = "IA32_RTIT_ADDR3_B"
    BNDCFGS = "IA32_BNDCFGS"
    PL0_SSP = "IA32_PL0_SSP"
    PL1_SSP = "IA32_PL1_SSP"
    PL2_SSP = "IA32_PL2_SSP"
    PL3_SSP = "IA32_PL3_SSP"
    INT_SSP_TAB = "IA32_INTERRUPT_SSP_TABLE_ADDR"
    UINTR_HANDLER = "IA32_UINTR_HANDLER"
    UINTR_STACKADJUST = "IA32_UINTR_STACKADJUST"
    UINTR_PD = "IA32_UINTR_PD"
    UINTR_TT = "IA32_UINTR_TT"
    FRED_RSP0 = "IA32_FRED_RSP0"
    FRED_RSP1 = "IA32_FRED_RSP1"
    FRED_RSP2 = "IA32_FRED_RSP2"
    FRED_RSP3 = "IA32_FRED_RSP3"
    FRED_SSP1 = "IA32_FRED_SSP1"
    FRED_SSP2 = "IA32_FRED_SSP2"
    FRED_SSP3 = "IA32_FRED_SSP3"
    FRED_CONFIG = "IA32_FRED_CONFIG"


MSRS: Final = {
    0x175: Register.SYSENTER_ESP,
    0x176: Register.SYSENTER_EIP,
    0x1CC: Register.FRED_RSP0,
    0x1CD: Register.FRED_RSP1,
    0x1CE: Register.FRED_RSP2,
    0x1CF: Register.FRED_RSP3,
    0x1D0: Register.FRED_STKLVLS,
    0x1D1: Register.FRED_SSP1,
    0x1D2: Register.FRED_SSP2,
    0x1D3: Register.FRED_SSP3,
    0x1D4: Register.FRED_CONFIG,
    0x277: Register.PAT,
    0x580: Register.RTIT_ADDR0_A,
    0x581: Register.RTIT_ADDR0_B,
    0x582: Register.RTIT_ADDR1_A,
    0x583: Register.RTIT_ADDR1_B,
    0x584: Register.RTIT_ADDR2_A,
    0x585: Register.RTIT_ADDR2_B,
    0x586: Register.RTIT_ADDR3_A,
    0x587: Register.RTIT_ADDR3_B,
    0x600: Register.DS_AREA,
    0x6A0: Register.U_CET,
    0x6A2: Register.S_CET,
    0x6A4: Register.PL0_SSP,
    0x6A5: Register.PL1_SSP,
    0x6A6: Register.PL2_SSP,
    0x6A7: Register.PL3_SSP,
    0x6A8: Register.INT_SSP_TAB,
    0x6E1: Register.PKRS,
    0x986: Register.UINTR_HANDLER,
    0x987: Register.UINTR_STACKADJUST,
    0x988: Register.UINTR_MISC,
    0x989: Register.UINTR_PD,
    0x98A: Register.UINTR_TT,
    0xD90: Register.BNDCFGS,
    0xC000_0080: Register.EFER,
    0xC000_0082: Register.LSTAR,
    0xC000_0083: Register.CSTAR,
    0xC000_0100: Register.FS_BASE,
    0xC000_0101: Register.GS_BASE,
    0xC000_0102: Register.KERNEL_GS_BASE,
}
"""The MSRs whose writes are judged here, by index."""
