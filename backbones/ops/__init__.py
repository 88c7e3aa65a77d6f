"""The compiled operators: one folder each, with one public function.

`reference.py` is the definition in plain tensors and does not change. `cpu.py` and `cuda.py` are fast paths and may be
rewritten freely, as long as the tests in `tests/backbones/test_ops.py` and `test_cuda.py` hold them to the reference,
forward and backward. The dispatch between them is in the folder's `__init__.py`.
"""
