"""Ways to make a model smaller, one module each: a share of the weights in, a smaller model out.

`method.py` says what all of them have in common, `registry.py` lists them.
"""
