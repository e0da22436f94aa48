"""attest's side of a test script: the NixOS test driver's names, on attest's engine."""
