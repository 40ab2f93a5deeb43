"""The papers' equations as pure functions on tensors."""
