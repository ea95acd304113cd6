"""The table of fuzz targets: name -> function of one case.

A new native entry point gets a function in the file of its kind, and a place in that file's TARGETS.
"""

from . import files, models, operators

TARGETS = {**operators.TARGETS, **models.TARGETS, **files.TARGETS}
