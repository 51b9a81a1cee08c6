"""How an error travels without weight transport: autograd functions, the broadcast of errors, targets."""
