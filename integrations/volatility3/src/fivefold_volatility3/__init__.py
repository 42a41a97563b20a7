# SPDX-License-Identifier: LicenseRef-VSL-1.0
"""Plug-in for volatility3: layers for five-level page tables and for the formats that fivefold reads.

Under the Volatility Software License 1.0. ``plugins`` is the folder for ``vol -p``; this package imports nothing.
"""
