"""What volatility3 is given for a guest: its symbols as an ISF file, and the folders to name on its command line.

Nothing here imports volatility3 or the plug-in: those are a distribution of their own, under another licence.
"""
