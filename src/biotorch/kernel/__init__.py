"""Autograd functions that carry errors without weight transport, the broadcast of output errors, and targets."""
