"""Ten minutes on a borrowed GPU: what is packed here, and what is run there (docs/gpu.md)."""
