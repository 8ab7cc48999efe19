//! A Windows guest of x86-64: where its kernel is, and which.
//!
//! Each vCPU enters the kernel at `LSTAR`, which is in `ntoskrnl.exe`. So from
//! there down, by the vCPU's own page tables, is the begin of that: an image
//! that says so of itself and has `LSTAR` in it. Nothing else is taken for it.
//!
//! `KDBG` (`KDDEBUGGER_DATA64`) is what the kernel tells debuggers:
//!
//! ```text
//! 16 bytes list | "KDBG" | 32 bits size | 64 bits KernBase | …
//! ```
//!
//! Since Windows 8 the kernel encodes it by numbers that only its symbols lead
//! to, unless it was started to be debugged. One that is not encoded has the
//! kernel's base.
//!
//! Source followed: QEMU `contrib/elf2dmp/main.c`, `kdbg.h`; volatility3
//! `framework/symbols/windows/pdbutil.py`.

use std::ops::Range;

use memchr::memmem;

use super::address_space::AddressSpace;
use super::entry::{KernelEntry, entries};
use super::pe::{Image, Pdb};
use super::search;
use crate::error::Result;
use crate::physical::PhysicalMemory;
use crate::stream::Stream;
use crate::units::PhysicalAddress;
use crate::wire::limit;

/// Where Windows has its kernel: above what it shares with programs
/// (`KUSER_SHARED_DATA`), below where Linux begins.
const KERNEL: Range<u64> = 0xffff_f780_0000_0000..0xffff_ffff_8000_0000;

/// What a kernel is called in its exports.
const NAME: &str = "ntoskrnl.exe";

/// What the files with its symbols are called: with and without several
/// processors, as it was built.
const PDB_NAMES: [&str; 2] = ["ntkrnlmp.pdb", "ntoskrnl.pdb"];

/// A Windows kernel that runs in the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Windows {
    /// Virtual address of its image.
    pub base: u64,
    /// Bytes of its image.
    pub image_len: u64,
    /// Where its image begins in memory.
    pub at: PhysicalAddress,
    /// Where the page tables are that have it: `DirectoryTableBase`.
    pub page_tables: PhysicalAddress,
    /// `TimeDateStamp` of the image: seconds since 1970, or since Windows 10 a
    /// number that tells builds apart.
    pub timestamp: u32,
    /// The file with its symbols. `None` if the page that says so is not there.
    pub pdb: Option<Pdb>,
    /// `NtBuildNumber`, without its flag. `None` if its exports are not there.
    pub build: Option<u16>,
    /// `NtBuildLab`: `19041.1.amd64fre.vb_release.191206-1406`. `None` if its
    /// exports are not there, or have none.
    pub build_lab: Option<String>,
    /// What it tells debuggers. `None` if there is none that is not encoded.
    pub kdbg: Option<Kdbg>,
}

/// `KDDEBUGGER_DATA64`, not encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kdbg {
    /// Its virtual address.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
}

impl Windows {
    /// The kernel that runs in a guest; `None` if no vCPU leads to one.
    ///
    /// # Errors
    /// As [`Ram::page`](crate::Ram::page).
    pub fn find(stream: &Stream<'_>, memory: PhysicalMemory<'_, '_>) -> Result<Option<Self>> {
        let mut tries = limit::NT_IMAGE_CANDIDATES;
        for entry in entries(stream, |lstar| KERNEL.contains(&lstar)) {
            for root in roots(&memory, &entry)? {
                let around = entry.lstar - limit::NT_IMAGE_LEN..entry.lstar + limit::NT_IMAGE_LEN;
                let tables = entry.tables(&memory, root);
                let space = AddressSpace::of(&tables, around)?;
                if let Some(image) = kernel(&space, entry.lstar, &mut tries)? {
                    return Self::of(&space, &image, tables.root()).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn of(
        space: &AddressSpace<'_, '_, '_>,
        image: &Image<'_, '_, '_, '_>,
        page_tables: PhysicalAddress,
    ) -> Result<Self> {
        let range = image.range();
        let exports = image.exports()?;
        let place = |name: &[u8]| exports.as_ref().and_then(|exports| exports.find(name));
        let build = place(b"NtBuildNumber").map_or(Ok(None), |rva| image.array(rva))?;
        let build_lab = place(b"NtBuildLab").map_or(Ok(None), |rva| image.text(rva, 255))?;
        Ok(Self {
            base: range.start,
            image_len: image.headers.image_len.into(),
            at: space.translate(range.start).map_or(PhysicalAddress(0), |(at, _)| at),
            page_tables,
            timestamp: image.headers.timestamp,
            pdb: image.pdb()?,
            build: build.and_then(build_number),
            build_lab,
            kdbg: Kdbg::find(space, range)?,
        })
    }
}

/// Where page tables are that may have the kernel: those of the vCPU, and those
/// that it goes to when it enters the kernel, if programs have others.
fn roots(memory: &PhysicalMemory<'_, '_>, entry: &KernelEntry) -> Result<Vec<u64>> {
    /// `KernelDirectoryTableBase` from the begin of `KPCR`, to which the base
    /// of `GS` points in the kernel.
    const KERNEL_DIRECTORY_TABLE_BASE: u64 = 0x7000;
    let mut roots = vec![entry.cr3];
    for gs in entry.gs {
        let Some(at) = gs.checked_add(KERNEL_DIRECTORY_TABLE_BASE) else { continue };
        let space = AddressSpace::of(&entry.tables(memory, entry.cr3), at..at.saturating_add(8))?;
        let root = space.array(at)?.map(u64::from_le_bytes);
        roots.extend(root.filter(|root| *root != 0 && !roots.contains(root)));
    }
    Ok(roots)
}

/// The kernel's image that has `lstar` in it, from there down.
fn kernel<'s, 'm, 'r, 'a>(
    space: &'s AddressSpace<'m, 'r, 'a>,
    lstar: u64,
    tries: &mut usize,
) -> Result<Option<Image<'s, 'm, 'r, 'a>>> {
    for base in space.pages_down(lstar) {
        let Some(image) = Image::at(space, base)? else { continue };
        let Some(left) = tries.checked_sub(1) else { break };
        *tries = left;
        let is_around =
            image.range().contains(&lstar) && u64::from(image.headers.image_len) <= limit::NT_IMAGE_LEN;
        if is_around && is_kernel(&image)? {
            return Ok(Some(image));
        }
    }
    Ok(None)
}

/// Whether an image says that it is the kernel.
fn is_kernel(image: &Image<'_, '_, '_, '_>) -> Result<bool> {
    if image.name()?.as_deref() == Some(NAME) {
        return Ok(true);
    }
    Ok(image.pdb()?.is_some_and(|pdb| PDB_NAMES.contains(&pdb.name.as_str())))
}

/// The build out of `NtBuildNumber`, which has in its upper half whether it is a
/// free or a checked one.
fn build_number(word: [u8; 4]) -> Option<u16> {
    let [low, high, flag_low, flag_high] = word;
    matches!([flag_low, flag_high], [0, 0xf0 | 0xc0]).then(|| u16::from_le_bytes([low, high]))
}

impl Kdbg {
    /// That in the kernel's image, whose addresses these are.
    fn find(space: &AddressSpace<'_, '_, '_>, image: Range<u64>) -> Result<Option<Self>> {
        /// Bytes up to `KernBase` and with it.
        const HEAD: usize = 32;
        let base = image.start;
        let look = |at: u64, bytes: &[u8]| {
            let tags = memmem::find_iter(bytes, b"KDBG");
            let mut found = tags.filter_map(|tag| {
                let (offset, rest) = (tag.checked_sub(16)?, bytes.get(tag + 4..)?);
                let (len, rest) = rest.split_first_chunk()?;
                let is_its = u64::from_le_bytes(*rest.first_chunk()?) == base;
                is_its.then(|| Self { address: at + offset as u64, len: u32::from_le_bytes(*len) })
            });
            Ok(found.next())
        };
        search::in_pieces(image, HEAD, |at, into| space.read(at, into), look)
    }
}
