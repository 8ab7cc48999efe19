//! A kernel in the memory of a guest, as far as readers of dumps look at it.

use std::collections::BTreeMap;

use super::synth::{Block, Records, Synth};

pub const RELEASE: &str = "6.1.0-synth";
pub const BANNER: &str = "Linux version 6.1.0-synth (build@host) (cc 1.0) #1 SMP 2026";
pub const PAGE: u64 = 4096;
/// How much memory the guest has.
pub const RAM_LEN: u64 = 32 << 20;

/// Where the image of the kernel is in memory, and its parts.
pub const IMAGE: u64 = 0x180_0000;
pub const IMAGE_LEN: u64 = 0x20_0000;
const UTS: u64 = IMAGE + 0x10_0000;
const BANNER_AT: u64 = IMAGE + 0x10_1100;
pub const TABLES: u64 = IMAGE + 0x11_0000;
/// Where VMCOREINFO is.
pub const INFO: u64 = 0x40_0000;

/// x86-64: where the image is seen, and all memory.
pub const STEXT: u64 = 0xffff_ffff_85a0_0000;
pub const LINEAR: u64 = 0xffff_8dba_0000_0000;
pub const KERNEL_OFFSET: u64 = 0x4a0_0000;
pub const PHYS_BASE: i64 = IMAGE as i64 - 0x5a0_0000;

/// aarch64: the same.
pub const STEXT_ARM: u64 = 0xffff_c27d_e220_0000;
pub const LINEAR_ARM: u64 = 0xffff_0000_0000_0000;

/// Memory of a guest, page by page.
#[derive(Clone, Default)]
pub struct Memory(pub BTreeMap<u64, Vec<u8>>);

impl Memory {
    /// Puts bytes anywhere, across pages too.
    pub fn put(mut self, at: u64, bytes: &[u8]) -> Self {
        for (nth, byte) in bytes.iter().enumerate() {
            let at = at + nth as u64;
            let page = self.0.entry(at / PAGE * PAGE).or_insert_with(|| vec![0; PAGE as usize]);
            page[(at % PAGE) as usize] = *byte;
        }
        self
    }

    pub fn word(self, at: u64, word: u64) -> Self {
        self.put(at, &word.to_le_bytes())
    }

    /// Its pages, as records of `pc.ram`.
    pub fn records(&self) -> Records {
        self.0.iter().fold(Records::new(), |records, (at, page)| records.data("pc.ram", *at, page))
    }

    /// A stream of a PC that has it.
    pub fn stream(&self) -> Synth {
        self.stream_of(RAM_LEN)
    }

    pub fn stream_of(&self, len: u64) -> Synth {
        Synth::new().configuration("pc-i440fx-10.0").ram(&[Block::new("pc.ram", len)], self.records())
    }
}

/// The text of VMCOREINFO of the kernel on x86-64.
pub fn info(release: &str) -> String {
    let of = |at: u64| STEXT + (at - IMAGE);
    format!(
        "OSRELEASE={release}\nBUILD-ID=00\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={:x}\nSYMBOL(_stext)={STEXT:x}\n\
         NUMBER(phys_base)={PHYS_BASE}\nSYMBOL(init_top_pgt)={:x}\nNUMBER(pgtable_l5_enabled)=0\n\
         KERNELOFFSET={KERNEL_OFFSET:x}\n",
        of(UTS),
        of(TABLES),
    )
}

/// And on aarch64.
pub fn info_arm(release: &str) -> String {
    let of = |at: u64| STEXT_ARM + (at - IMAGE);
    format!(
        "OSRELEASE={release}\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={:x}\nSYMBOL(swapper_pg_dir)={:x}\n\
         SYMBOL(_stext)={STEXT_ARM:x}\nNUMBER(VA_BITS)=48\nNUMBER(kimage_voffset)=0x{:x}\nKERNELOFFSET=0\n",
        of(UTS),
        of(TABLES),
        STEXT_ARM - IMAGE,
    )
}

/// The ELF note of it.
pub fn note(text: &str) -> Vec<u8> {
    let words = [11, text.len() as u32, 0].map(u32::to_le_bytes).concat();
    [words.as_slice(), b"VMCOREINFO\0\0", text.as_bytes()].concat()
}

/// What of a kernel is in its image: its name, its banner.
pub fn image() -> Memory {
    let names = ["Linux", "synth-host", RELEASE, "#1 SMP 2026", "x86_64", "(none)"];
    let memory = Memory::default().put(BANNER_AT, format!("{BANNER}\n\0").as_bytes());
    (0..).zip(names).fold(memory, |memory, (nth, name)| memory.put(UTS + 65 * nth, name.as_bytes()))
}

/// The image, and page tables of x86-64 with pages of 2 MiB.
pub fn with_tables() -> Memory {
    let (next, large) = (|table: u64| (TABLES + table * PAGE) | 3, |at: u64| at | 0x83);
    let slot = |table: u64, nth: u64| TABLES + table * PAGE + 8 * nth;
    let memory = image()
        .word(slot(0, 511), next(1))
        .word(slot(1, 510), next(2))
        .word(slot(2, STEXT >> 21 & 511), large(IMAGE))
        // What is at another offset is not of the image.
        .word(slot(2, 500), large(0))
        .word(slot(0, LINEAR >> 39 & 511), next(3))
        .word(slot(3, LINEAR >> 30 & 511), next(4));
    (0..RAM_LEN >> 21).fold(memory, |memory, nth| memory.word(slot(4, nth), large(nth << 21)))
}

/// The image, and page tables of aarch64 with blocks of 2 MiB.
pub fn with_tables_arm() -> Memory {
    let (next, block) = (|table: u64| (TABLES + table * PAGE) | 3, |at: u64| at | 0x701);
    let slot = |table: u64, nth: u64| TABLES + table * PAGE + 8 * nth;
    let memory = image()
        .word(slot(0, STEXT_ARM >> 39 & 511), next(1))
        .word(slot(1, STEXT_ARM >> 30 & 511), next(2))
        .word(slot(2, STEXT_ARM >> 21 & 511), block(IMAGE))
        .word(slot(0, LINEAR_ARM >> 39 & 511), next(3))
        .word(slot(3, LINEAR_ARM >> 30 & 511), next(4));
    (0..RAM_LEN >> 21).fold(memory, |memory, nth| memory.word(slot(4, nth), block(nth << 21)))
}

/// A table that leads to itself, everywhere.
pub fn with_circles() -> Memory {
    (0..512).fold(image(), |memory, nth| memory.word(TABLES + 8 * nth, TABLES | 3))
}

/// A page that begins with VMCOREINFO.
pub fn info_page(text: &str) -> Vec<u8> {
    let mut page = text.as_bytes().to_vec();
    page.resize(PAGE as usize, 0);
    page
}
