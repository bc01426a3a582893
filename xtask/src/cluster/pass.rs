//! An XDP program that lets everything pass, as an object file.
//!
//! A veth sends back what XDP wants sent back only to an end that runs XDP itself (`veth_xdp_flush` in the kernel's
//! drivers/net/veth.c); a real card needs no such thing. Two instructions are not worth a compiler.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// The program's section.
pub const SECTION: &str = "xdp";

/// Section and symbol names: `xdp` at 1, `.strtab` at 5, `.symtab` at 13.
const NAMES: &[u8] = b"\0xdp\0.strtab\0.symtab\0";
/// `r0 = XDP_PASS; exit` (<https://docs.kernel.org/bpf/standardization/instruction-set.html>).
const CODE: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
/// Sizes of ELF64's headers and symbols (<https://gabi.xinuos.com/elf/>).
const HEADER: u64 = 64;
const SYMBOL: u64 = 24;

/// A section header, in ELF64's order of fields.
struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: u32,
    info: u32,
    entry: u64,
}

/// Writes the object.
///
/// # Errors
/// When the disk refuses.
pub fn write(file: &Path) -> Result<()> {
    fs::write(file, object()).with_context(|| format!("failed to write {}", file.display()))
}

fn object() -> Vec<u8> {
    let code = HEADER;
    let symbols = code + CODE.len() as u64;
    let names = symbols + 2 * SYMBOL;
    let table = (names + NAMES.len() as u64).next_multiple_of(8);
    // Null, code (PROGBITS, allocated and executable), names (STRTAB), symbols (SYMTAB, the first global one is 1).
    let section = |name, kind, offset, size| Section {
        name,
        kind,
        flags: 0,
        offset,
        size,
        link: 0,
        info: 0,
        entry: 0,
    };
    let sections = [
        section(0, 0, 0, 0),
        Section {
            flags: 6,
            ..section(1, 1, code, CODE.len() as u64)
        },
        section(5, 3, names, NAMES.len() as u64),
        Section {
            link: 2,
            info: 1,
            entry: SYMBOL,
            ..section(13, 2, symbols, 2 * SYMBOL)
        },
    ];
    // 64 bits, little endian, version 1; relocatable, for machine 247, which is BPF.
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend([1_u16, 247].iter().flat_map(|value| value.to_le_bytes()));
    out.extend(1_u32.to_le_bytes());
    out.extend([0, 0, table].iter().flat_map(|value| value.to_le_bytes()));
    out.extend(0_u32.to_le_bytes());
    out.extend(
        [64_u16, 0, 0, 64, 4, 2]
            .iter()
            .flat_map(|value| value.to_le_bytes()),
    );
    out.extend(CODE);
    out.extend([0; SYMBOL as usize]);
    // The symbol: a global function named like its section, the whole of section 1.
    out.extend(1_u32.to_le_bytes());
    out.extend([0x12, 0, 1, 0]);
    out.extend(
        [0, CODE.len() as u64]
            .iter()
            .flat_map(|value| value.to_le_bytes()),
    );
    out.extend(NAMES);
    out.resize(table as usize, 0);
    for section in sections {
        out.extend(
            [section.name, section.kind]
                .iter()
                .flat_map(|value| value.to_le_bytes()),
        );
        let middle = [section.flags, 0, section.offset, section.size];
        out.extend(middle.iter().flat_map(|value| value.to_le_bytes()));
        out.extend(
            [section.link, section.info]
                .iter()
                .flat_map(|value| value.to_le_bytes()),
        );
        out.extend([8, section.entry].iter().flat_map(|value| value.to_le_bytes()));
    }
    out
}
