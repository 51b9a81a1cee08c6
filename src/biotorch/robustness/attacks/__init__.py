"""Adversarial attacks: one base class, and one file per family."""
