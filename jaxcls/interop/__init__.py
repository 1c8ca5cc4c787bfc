"""Weights from and for PyTorch, and an independent PyTorch build of the networks to compare with."""
