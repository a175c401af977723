"""What a run left behind, made readable: run folders in, numbers, one page and one figure out.

Everything here reads files of a run folder and needs no torch, so a report can be made on any machine.
"""
