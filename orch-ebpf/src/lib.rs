#![no_std]
//! The data plane: its ABI (this library) and, with `programs`, the eBPF programs.
