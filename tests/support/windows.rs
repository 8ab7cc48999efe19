//! A Windows kernel in the memory of a guest, as far as its image tells of it.

use super::kernel::{Memory, PAGE};
use super::synth::Synth;
use super::vcpu::Vcpu;

/// Where the image is seen, its length, and the entry of system calls in it.
pub const BASE: u64 = 0xffff_f805_1220_3000;
pub const IMAGE_LEN: u32 = 0x41_0000;
pub const LSTAR: u64 = BASE + 0x21_0040;

/// Where tables of the image are in it.
pub const HEADERS: u64 = 0x100;
pub const OPTIONAL: u64 = HEADERS + 24;
pub const DEBUG: u64 = 0x1000;
pub const RSDS: u64 = 0x1100;
pub const EXPORTS: u64 = 0x30_0000;
pub const NAMES: u64 = EXPORTS + 0x200;
const BUILD: u64 = 0x10_0000;
const LAB: u64 = 0x10_0100;
/// What debuggers are told, across the border of two pages.
pub const KDBG: u64 = 0x10_0fe8;
pub const LAB_TEXT: &str = "19041.1.amd64fre.vb_release.191206-1406";

/// Where page tables are in memory, and the pages of the image.
pub const ROOT: u64 = 0x10_0000;
const PAGES: u64 = 0x100_0000;

/// A kernel's image: its pages by their place in it. Those that are not there
/// are paged out.
pub fn image() -> Memory {
    let text = |text: &str| format!("{text}\0").into_bytes();
    let memory = headers(Memory::default())
        .put(DEBUG, &words(&[0, 0, 0, 4, 0, 0, 0]))
        .put(DEBUG + 28, &words(&[0, 0, 0, 2, 24 + 13, RSDS as u32, 0]))
        .put(RSDS, b"RSDS\x78\x56\x34\x12\xbc\x9a\xf0\xde\x01\x02\x03\x04\x05\x06\x07\x08\x02\0\0\0")
        .put(RSDS + 24, &text("ntkrnlmp.pdb"))
        .put(BUILD, &0xf000_4a61_u32.to_le_bytes())
        .put(LAB, &text(LAB_TEXT))
        .put(LSTAR - BASE, b"\x0f\x01\xf8")
        .put(KDBG + 16, b"KDBG")
        .put(KDBG + 20, &0x380_u32.to_le_bytes())
        .word(KDBG + 24, BASE);
    exports(memory, &[("ExAllocatePool", 0x2_0000), ("NtBuildLab", LAB), ("NtBuildNumber", BUILD)])
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn headers(memory: Memory) -> Memory {
    let memory = memory
        .put(0, b"MZ")
        .put(0x3c, &(HEADERS as u32).to_le_bytes())
        .put(HEADERS, b"PE\0\0\x64\x86\0\0")
        .put(HEADERS + 8, &0x5f00_1234_u32.to_le_bytes())
        .put(HEADERS + 20, &[240, 0, 0x22, 0])
        .put(OPTIONAL, &[0x0b, 0x02])
        .put(OPTIONAL + 56, &IMAGE_LEN.to_le_bytes())
        .put(OPTIONAL + 108, &[16]);
    let memory = directory(memory, 0, EXPORTS as u32, 0x1000);
    directory(memory, 6, DEBUG as u32, 56)
}

/// Says where a table of the image is, and how long.
pub fn directory(memory: Memory, nth: u64, rva: u32, len: u32) -> Memory {
    memory.put(OPTIONAL + 112 + 8 * nth, &words(&[rva, len]))
}

/// The exports: their directory, its name, addresses, names and ordinals.
fn exports(memory: Memory, exports: &[(&str, u64)]) -> Memory {
    let at = |offset: u64| (EXPORTS + offset) as u32;
    let count = exports.len() as u32;
    let head = [0, 0, 0, at(0x40), 1, count, count, at(0x80), at(0x100), at(0x180)];
    let memory = memory.put(EXPORTS, &words(&head)).put(EXPORTS + 0x40, b"ntoskrnl.exe\0");
    (0..).zip(exports).fold(memory, |memory, (nth, (name, address))| {
        let name_at = NAMES + 0x40 * nth;
        // The nth name is of the last address but n.
        let ordinal = u64::from(count) - 1 - nth;
        memory
            .put(EXPORTS + 0x80 + 4 * ordinal, &(*address as u32).to_le_bytes())
            .put(EXPORTS + 0x100 + 4 * nth, &(name_at as u32).to_le_bytes())
            .put(EXPORTS + 0x180 + 2 * nth, &(ordinal as u16).to_le_bytes())
            .put(name_at, format!("{name}\0").as_bytes())
    })
}

/// Memory of a guest, and page tables in it.
#[derive(Clone)]
pub struct Guest {
    pub memory: Memory,
    next: u64,
}

impl Guest {
    /// With an image in memory, page by page in another order, and tables that
    /// have it at [`BASE`].
    pub fn with(image: &Memory) -> Self {
        let mut guest = Self { memory: Memory::default(), next: ROOT + 0x10_0000 };
        for (nth, (rva, page)) in (0..).zip(image.0.iter().rev()) {
            let at = PAGES + nth * PAGE;
            guest.memory = guest.memory.put(at, page);
            guest.map(ROOT, BASE + rva, at);
        }
        guest
    }

    /// Has tables show the page `to` at `at`.
    pub fn map(&mut self, root: u64, at: u64, to: u64) {
        let mut table = root;
        for level in (1..4).rev() {
            let slot = table + 8 * (at >> (12 + 9 * level) & 511);
            let entry = self.read(slot);
            table = entry & !0xfff;
            if entry == 0 {
                table = self.next;
                self.next += PAGE;
                self.write(slot, table | 3);
            }
        }
        self.write(table + 8 * (at >> 12 & 511), to | 0x8000_0000_0000_0003);
    }

    fn read(&self, at: u64) -> u64 {
        let page = self.memory.0.get(&(at / PAGE * PAGE));
        let offset = (at % PAGE) as usize;
        page.map_or(0, |page| u64::from_le_bytes(page[offset..offset + 8].try_into().unwrap()))
    }

    fn write(&mut self, at: u64, word: u64) {
        self.memory = std::mem::take(&mut self.memory).word(at, word);
    }

    /// Its stream, with a vCPU whose tables begin at `cr3`.
    pub fn stream(&self, cr3: u64) -> Synth {
        Vcpu { lstar: LSTAR, cr3, ..Vcpu::default() }.put(self.memory.stream(), 0)
    }
}
