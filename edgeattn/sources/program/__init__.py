"""The archive of a torch.export program (``.pt2``), looked at and written again before torch sees it.

A .pt2 looks like data and is not: ``torch.export.load`` writes names of the file into Python source and executes it
(arguments, inputs, nodes, keys of trees, paths of modules), evaluates the strings of symbolic shapes and guards,
unpickles constants and example inputs without ``weights_only``, loads compiled libraries, imports the modules that a
tree of inputs names, and calls whatever attribute of torch a node names. So torch gets another archive than the user's:
:func:`clean_archive` copies what a plain program needs, field by field of torch's own schema, each string held to a
rule of :data:`~edgeattn.sources.program.rules.STRINGS`. A string without a rule is refused; free text (stack traces,
metadata, guards) is left out.
"""

from edgeattn.sources.program.archive import EXPORT, GRAPH_FILE, Archive, clean_archive

__all__ = ["EXPORT", "GRAPH_FILE", "Archive", "clean_archive"]
