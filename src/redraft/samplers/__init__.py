"""One file per sampler: a rule that changes the canvas. ``base.py`` has the base class.

``shared/`` has functions of several samplers. ``wrappers/`` adapts samplers to models that generate block by block or
change the length of a sequence.
"""
